"""Attention's back ends over sequence lengths: where does which win?

pytest bench/bench_attention.py --benchmark-json=F
"""

import contenders
import interleave
import pytest
import torch
from figures import figures
from ldae_fast.kernels.attention.cases import least

from ldae_fast import ops

pytestmark = pytest.mark.benchmark(timer=interleave.CLOCK, group="attention")
LENGTHS = (16, 64, 256, 1024)
TOKENS = {"cpu": 2048, "cuda": 32768}  # in a batch, whatever the length
HEADS = {"cpu": 6, "cuda": 16}
HEAD_DIM = 64


def backends(device: str, q: torch.Tensor) -> dict:
    """name -> call(q, k, v) of each back end that takes these inputs."""
    offered = {}
    for impl in [*contenders.implementations("attention"), "reference"]:
        run = contenders.by("attention", impl)
        try:
            run(q, q, q)
        except ValueError as refusal:
            if "cannot run here" not in str(refusal) and "impl must be" not in str(refusal):
                raise
        else:
            offered[impl] = run
    return offered | {"auto": ops.attention}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("mode", ["fwd", "fwdbwd"])
@pytest.mark.parametrize("length", LENGTHS)
def test_backends(benchmark, rates, device, mode, length, request):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("not measured: no CUDA device")
    g = torch.Generator().manual_seed(0)
    shape = (TOKENS[device] // length, length, HEADS[device], HEAD_DIM)
    work = least(shape, torch.bfloat16, mode)
    qkv = [torch.randn(shape, generator=g).to(device, torch.bfloat16) for _ in range(3)]
    runs = backends(device, qkv[0])
    error = contenders.distance("attention", "auto", qkv, {}, torch.bfloat16)
    assert error <= contenders.WORST, f"{error:.2f} times as far from float64 as plain torch"
    torch.compiler.reset()
    runs["compile"] = torch.compile(contenders.by("attention", "reference"), dynamic=False)
    calls = {
        name: contenders.Call(run, qkv, {}, differentiable=(0, 1, 2)).timed(mode)
        for name, run in runs.items()
    }
    with contenders.recorded(mode):
        times = interleave.measure(calls, device, request.config.getoption("--seconds"))
    times = {{"auto": "impl", "reference": "eager"}.get(name, name): t for name, t in times.items()}
    interleave.CLOCK.record(benchmark, times["impl"])
    row = ("attention", "auto", f"{device}-T{length}", mode)
    known = figures(row, times, torch.bfloat16, device, work, rates(device, torch.bfloat16))
    benchmark.extra_info |= known | {
        "err_ratio": error,
        "peak_mib": interleave.peak_mib(calls["auto"], device),
    }
