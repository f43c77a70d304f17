"""Options and fixtures of the benchmarks: the machine's own rates, and one row's measurement."""

import os
import time
import warnings

import contenders
import interleave
import peers
import pytest
import torch
from at_once import pytest_runtest_logreport  # noqa: F401, a hook
from figures import figures
from table import line
from torch._dynamo.exc import BackendCompilerFailed

from ldae_fast.rates import copy_rate, gemm_rate
from ldae_fast.train.memory import keep_freed_memory

NAMES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
MODES_HELP = "fwd, bwd, fwdbwd, step by comma; default: all on CUDA, all but bwd on a CPU"


def pytest_addoption(parser):
    group = parser.getgroup("ldae")
    group.addoption("--ops", default="", help="only these, by comma")
    group.addoption("--modes", default="", help=MODES_HELP)
    group.addoption("--dtype", choices=sorted(NAMES), help="default: the one each op trains in")
    group.addoption("--seconds", type=float, default=0.6, help="of rounds a row (default 0.6)")

    group.addoption("--stop-after", type=float, metavar="S", help="skip rows that start later")


BEGAN = time.monotonic()


@pytest.fixture(autouse=True)
def told(request):
    """Hands a row's figures to the report."""
    timed = "benchmark" in request.fixturenames
    known = request.getfixturevalue("benchmark").extra_info if timed else {}
    yield
    if "p50_us" in known:
        request.node.user_properties.append(("row", line(known)))


@pytest.fixture(autouse=True)
def in_time(request):
    limit = request.config.getoption("--stop-after")
    if limit and time.monotonic() - BEGAN > limit:
        pytest.skip(f"not measured: {limit:.0f} s are over")


def pytest_configure(config):
    os.environ.pop("LDAE_IMPL", None)  # would make every contender the reference
    # As `ldae train` does: else the page faults of fresh outputs are most of what is timed.
    keep_freed_memory()


def wanted(config, row: tuple[str, str, str, str]) -> bool:
    """Whether the options ask for (op, implementation, case, mode)."""
    op, _, case, mode = row
    chosen = config.getoption("--ops").split(",") if config.getoption("--ops") else [op]
    modes = config.getoption("--modes").split(",") if config.getoption("--modes") else None
    if modes is None:
        modes = ["fwd", "fwdbwd", "step", *(["bwd"] if case.startswith("gpu-") else [])]
    return op in chosen and mode in modes


def pytest_generate_tests(metafunc):
    if "row" in metafunc.fixturenames:
        rows = [r for r in metafunc.module.rows() if wanted(metafunc.config, r)]
        metafunc.parametrize("row", rows, ids=["-".join(r) for r in rows])


@pytest.fixture(scope="session")
def rates():
    """(device, dtype) -> (bytes a second of a copy, FLOPs a second of a product), measured once.

    A product counts in float32 too: a CPU may emulate it in bfloat16, a hundred times slower.
    """
    known = {}

    def of(device: str, dtype: torch.dtype) -> tuple[float, float]:
        if (device, dtype) not in known:
            copy = known.setdefault((device, "copy"), copy_rate(device))
            product = max(gemm_rate(device, d) for d in {dtype, torch.float32})
            known[device, dtype] = (copy, product)
        return known[device, dtype]

    return of


@pytest.fixture
def measured(benchmark, rates, request):
    """Measures a row against its rivals and writes the figures into the benchmark's record."""

    def measure(row: tuple[str, str, str, str]) -> dict:
        op, impl, case, mode = row
        device = contenders.device_of(case)
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("not measured: no CUDA device")
        named = request.config.getoption("--dtype")
        dtype = NAMES[named] if named else contenders.dtype_of(op, device)
        arguments, options = contenders.inputs(op, case, dtype, device)
        refuse(op, impl, arguments, options)
        error = contenders.error_ratio(op, impl, case, dtype, device)
        assert error <= contenders.WORST, (
            f"{op} {impl} {case}: {error:.2f} times as far from float64 as plain torch"
        )
        seconds = request.config.getoption("--seconds")
        times, peak = against_rivals(row, arguments, options, seconds)
        work = contenders.cases(op).work(case, dtype, "fwdbwd" if mode == "step" else mode)
        interleave.CLOCK.record(benchmark, times["impl"])
        benchmark.extra_info |= figures(row, times, dtype, device, work, rates(device, dtype))
        benchmark.extra_info |= {"err_ratio": error, "peak_mib": peak}
        return benchmark.extra_info

    return measure


def refuse(op: str, impl: str, arguments: list, options: dict) -> None:
    """Skips a row whose implementation says that it cannot run here."""
    try:
        contenders.call(op, contenders.by(op, impl), arguments, options).values()
    except ValueError as reason:
        if "cannot run here" not in str(reason) and "impl must be one of" not in str(reason):
            raise
        pytest.skip(f"not measured: {reason}")


def against_rivals(row, arguments, options, seconds) -> tuple[dict, float]:
    """Times of the row's implementation and of its rivals in the same rounds, and its peak MiB."""
    op, impl, case, mode = row
    device = contenders.device_of(case)
    torch.compiler.reset()  # recompilation limits count over all rows otherwise
    rivals = {
        "eager": contenders.by(op, "reference"),
        "compile": torch.compile(contenders.by(op, "reference"), dynamic=False),
    }
    rivals |= {n: make(arguments, options) for n, make in peers.PEERS.get(op, {}).items()}
    calls = {"impl": contenders.timed(op, impl, arguments, options, mode)}
    with contenders.recorded(mode):
        for name, run in rivals.items():
            try:
                calls[name] = contenders.call(op, run, arguments, options).timed(mode)
                if name == "compile":
                    calls[name]()
            except BackendCompilerFailed as error:
                calls.pop(name, None)
                last = str(error).strip().splitlines()[-1]
                why = f"{'-'.join(row)}: torch.compile fails at the reference: {last}"
                warnings.warn(why, stacklevel=1)
        times = interleave.measure(calls, device, seconds)
        return times, interleave.peak_mib(calls["impl"], device)
