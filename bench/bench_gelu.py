"""The middle of mlp_gelu alone: bias and GELU in one pass, without the products around it.

pytest bench/bench_gelu.py --benchmark-json=F [--seconds 2]
"""

import contenders
import interleave
import pytest
import torch
import torch.nn.functional as F
from figures import figures
from torch import Tensor

pytestmark = pytest.mark.benchmark(timer=interleave.CLOCK, group="gelu")
SHAPES = {"cpu": (8192, 1536), "cuda": (32768, 4096)}
IMPL = {"cpu": "cpp", "cuda": "triton"}


def plain(u: Tensor, bias: Tensor, approximate: str) -> Tensor:
    return F.gelu(u + bias, approximate=approximate)


def one_pass(u: Tensor, bias: Tensor, approximate: str) -> Tensor:
    tanh = approximate == "tanh"
    if u.is_cuda:
        return torch.ops.ldae_triton.bias_gelu_forward(u, bias, tanh)
    return torch.ops.ldae.bias_gelu_forward(u, bias, tanh)


def work(rows: int, width: int, dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """(bytes, FLOPs): u and out, then dout, u and du; what the arithmetic takes is not counted."""
    return {"fwd": 2, "fwdbwd": 5}[mode] * rows * width * dtype.itemsize, 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("mode", ["fwd", "fwdbwd"])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_gelu(benchmark, rates, device, mode, approximate, dtype, request):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("not measured: no CUDA device")
    g = torch.Generator().manual_seed(0)
    rows, width = SHAPES[device]
    arguments = [
        (1.5 * torch.randn(shape, generator=g)).to(device, dtype)
        for shape in ((rows, width), width)
    ]
    options = {"approximate": approximate}
    torch.compiler.reset()
    runs = {"impl": one_pass, "eager": plain, "compile": torch.compile(plain, dynamic=False)}
    calls = {
        name: contenders.Call(run, arguments, options, differentiable=(0, 1))
        for name, run in runs.items()
    }
    in_double = contenders.in_double(arguments)
    exact = contenders.Call(plain, in_double, options, differentiable=(0, 1)).values()
    both = zip(calls["impl"].values(), calls["eager"].values(), exact, strict=True)
    error = max(contenders.ratio(*three, dtype) for three in both)
    assert error <= contenders.WORST, f"{error:.2f} times as far from float64 as plain torch"
    timed = {name: call.timed(mode) for name, call in calls.items()}
    with contenders.recorded(mode):
        times = interleave.measure(timed, device, request.config.getoption("--seconds"))
    interleave.CLOCK.record(benchmark, times["impl"])
    row = ("bias_gelu", IMPL[device], f"{device}-{approximate}", mode)
    known = figures(row, times, dtype, device, work(rows, width, dtype, mode), rates(device, dtype))
    benchmark.extra_info |= known | {
        "err_ratio": error, "peak_mib": interleave.peak_mib(timed["impl"], device)
    }  # fmt: skip
