"""Attention's back ends over sequence lengths: where does which win?

pytest bench/bench_attention.py --benchmark-json=F
"""

import contenders
import interleave
import pytest
import torch

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
def test_backends(benchmark, device, mode, length, request):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("not measured: no CUDA device")
    g = torch.Generator().manual_seed(0)
    shape = (TOKENS[device] // length, length, HEADS[device], HEAD_DIM)
    qkv = [torch.randn(shape, generator=g).to(device, torch.bfloat16) for _ in range(3)]
    runs = backends(device, qkv[0])
    calls = {
        name: contenders.Call(run, qkv, {}, differentiable=(0, 1, 2)).timed(mode)
        for name, run in runs.items()
    }
    times = interleave.measure(calls, device, request.config.getoption("--seconds"))
    auto = times.pop("auto")
    interleave.CLOCK.record(benchmark, auto)
    benchmark.extra_info |= {
        "op": "attention", "impl": "auto", "case": f"{device}-T{length}", "mode": mode,
        "dtype": "bfloat16", "device": device, "p50_us": auto.p50 * 1e6,
        "p20_us": auto.quantile(0.2) * 1e6, "p80_us": auto.quantile(0.8) * 1e6,
        "x_eager": times["reference"].p50 / auto.p50,
        "x_peers": {name: t.p50 / auto.p50 for name, t in times.items()},
    }  # fmt: skip
