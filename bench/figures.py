"""The figures of one row, from the times of its contenders: what the table shows."""

from collections.abc import Mapping

import torch
from interleave import Times


def figures(
    row: tuple[str, str, str, str],
    times: Mapping[str, Times],
    dtype: torch.dtype,
    device: str,
    work: tuple[int, int],
    rate: tuple[float, float],
) -> dict:
    """What a row (op, implementation, case, mode) has to say, by the table's keys.

    times: of "impl", "eager", "compile" where that works, and any peers, in the same rounds; ratios
    are times of a rival over those of "impl". work: (bytes, FLOPs) at least. rate: (bytes, FLOPs)
    a second.
    """
    op, impl, case, mode = row
    own = times["impl"]
    rivals = {name: t.p50 / own.p50 for name, t in times.items() if name != "impl"}
    (traffic, flops), (copy, gemm) = work, rate
    return {
        "op": op, "impl": impl, "case": case, "mode": mode, "dtype": str(dtype)[6:],
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "p50_us": own.p50 * 1e6,
        "p20_us": own.quantile(0.2) * 1e6,
        "p80_us": own.quantile(0.8) * 1e6,
        "spread": max(t.quantile(0.8) / t.quantile(0.2) for t in times.values()),
        "gbps": traffic / own.p50 / 1e9,
        "tflops": flops / own.p50 / 1e12,
        "pct_of_peak": 100 * max(traffic / copy, flops / gemm) / own.p50,
        "x_eager": rivals.pop("eager"),
        "x_compile": rivals.pop("compile", None),
        "x_peers": rivals,
        "copy_gbps": copy / 1e9, "gemm_tflops": gemm / 1e12,
    }  # fmt: skip
