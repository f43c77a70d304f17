"""Times the Triton kernels over their launch settings, on the shapes of training.

python bench/tune.py [--only adaln] [--jobs 8]

Every candidate must give what the settings in the source give, to rounding, and is timed on the
device with its inputs in memory. % of copy: of the bytes that the pass needs at the rate of a plain
copy. --jobs: that many processes compile first. On a CPU, --device cpu runs each candidate once, on
a small shape in Triton's interpreter (TRITON_INTERPRET=1), for checking only.
"""

import argparse
import contextlib
import importlib
import itertools
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import bench_gelu
import contenders
import torch

from ldae_fast.rates import Evictor, copy_rate, stopwatch

REPEATS = 15
GELU = bench_gelu.SHAPES["cuda"]
APART = 2e-2  # of the largest value: bfloat16 sums in another order


def each(**values) -> list[dict]:
    """Every combination of one value a name."""
    return [dict(zip(values, chosen)) for chosen in itertools.product(*values.values())]


@dataclass
class Subject:
    """One pass of an op, and names in its kernel's module with values to try together."""

    op: str
    mode: str
    cases: dict[str, str]  # on cuda, on cpu
    candidates: list[dict]
    name: str = ""
    dtype: torch.dtype = torch.bfloat16
    kernels: str = ""  # the op whose folder has them, where it is another one
    found: list[tuple[float, dict]] = field(default_factory=list)

    @property
    def module(self):
        return importlib.import_module(f"ldae_fast.kernels.{self.kernels or self.op}.triton_kernel")

    def call(self, device: str) -> contenders.Call:
        dtype = self.dtype if device == "cuda" else torch.float32
        if self.op == "mlp_gelu":  # its kernels alone, without the products around them
            g = torch.Generator().manual_seed(0)
            rows, width = GELU if device == "cuda" else (24, 40)
            shapes = (rows, width), (width,)
            given = [torch.randn(s, generator=g).to(device, dtype) for s in shapes]
            run = torch.ops.ldae_triton.bias_gelu_forward
            return contenders.Call(lambda u, b: run(u, b, False), given, {}, (0, 1))
        arguments, options = contenders.inputs(self.op, self.cases[device], dtype, device)
        run = contenders.by(self.op, "triton")
        if self.op == "quantise_float8":  # past its refusal of the interpreter

            def run(x, gradient):
                return self.module.quantise_float8(x, torch.float8_e4m3fn, None)

        return contenders.call(self.op, run, arguments, options)

    def bytes(self) -> int:
        if self.op == "mlp_gelu":
            both, forward = (bench_gelu.work(*GELU, self.dtype, m)[0] for m in ("fwdbwd", "fwd"))
            return forward if self.mode == "fwd" else both - forward
        mode = "fwdbwd" if self.mode == "step" else self.mode
        return contenders.cases(self.op).work(self.cases["cuda"], self.dtype, mode)[0]

    @contextlib.contextmanager
    def under(self, candidate: dict):
        kept = {name: getattr(self.module, name) for name in candidate}
        vars(self.module).update(candidate)
        try:
            yield
        finally:
            vars(self.module).update(kept)


def tiles(**values) -> list[dict]:
    """Combinations of ROWS, BLOCK and more whose tile has 1,024 to 4,096 values."""
    return [one for one in each(**values) if 1024 <= one["ROWS"] * one["BLOCK"] <= 4096]


def attention(choices: list[dict]) -> list[dict]:
    """Candidates that put these into what `settings` gives for the kernels they name."""
    own = importlib.import_module("ldae_fast.kernels.attention.triton_kernel").settings

    def candidate(kernels: tuple, **changes) -> dict:
        def settings(q, kernel):
            taken = own(q, kernel)
            if kernel in kernels:
                taken |= changes
                # A block beyond the padded length would lie outside the tensors, unmasked.
                longest = max(16, 1 << (q.shape[1] - 1).bit_length())
                taken |= {name: min(taken[name], longest) for name in ("QUERIES", "KEYS")}
            return taken

        return {"settings": settings, "shown": {"kernels": kernels} | changes}

    return [candidate(**one) for one in choices]


def subjects() -> list[Subject]:
    adaln, gelu = "gate_residual_layernorm_modulate", "mlp_gelu"
    large, heads = {"cuda": "gpu-L", "cpu": "odd"}, {"cuda": "gpu-l", "cpu": "small"}
    forward = tiles(ROWS=[1, 2, 4, 8, 16], BLOCK=[256, 512, 1024], num_warps=[4, 8])
    backward = tiles(ROWS=[4, 8, 16], BLOCK=[256, 512], STAGES=[1, 2, 3], num_warps=[4, 8])
    found = [
        Subject(adaln, "fwd", large, each(FORWARD=[8, 16, 32]), "adaln"),
        Subject(adaln, "bwd", large,
                each(BACKWARD=[8, 16], CHUNK=[16, 32, 64], STAGES=[1, 2, 3]), "adaln"),
        # Without the residual a thread has half the bytes under way.
        Subject("layernorm_modulate", "fwd", large, each(FORWARD=[8, 16, 32, 64]), "layernorm",
                kernels=adaln),
        Subject("layernorm_modulate", "bwd", large,
                each(BACKWARD=[8, 16, 32], CHUNK=[32, 64], STAGES=[1, 2, 3]), "layernorm",
                kernels=adaln),
        Subject(gelu, "fwd", large, each(FORWARD=forward), "gelu"),
        Subject(gelu, "bwd", large, each(BACKWARD=backward, CHUNK=[64, 128, 256]), "gelu"),
        Subject("adamw_ema", "step", large, each(BLOCK=[1024, 2048, 4096], WARPS=[4, 8]),
                "adamw", torch.float32),
    ]  # fmt: skip
    tile = each(BM=[32, 64, 128], BK=[32, 64], WARPS=[4, 8], STAGES=[2, 3])
    found.append(Subject("denoise_loss", "bwd", {"cuda": "gpu-d16", "cpu": "odd"}, tile, "loss"))
    shape = {"num_warps": [4, 8], "num_stages": [1, 2, 3]}
    # 4 warps have too few registers for a whole head, and ended in an illegal access on an H200.
    whole = each(kernels=[("backward",)], KEYS=[64, 128], **shape | {"num_warps": [8]})
    split = each(kernels=[("queries", "keys")], QUERIES=[64, 128], KEYS=[64, 128], **shape)
    both = attention(whole) + [one | {"WIDEST": 0} for one in attention(split)]
    shape = {"num_warps": [4, 8], "num_stages": [2, 3, 4]}
    forward = each(kernels=[("forward",)], QUERIES=[64, 128], **shape)
    found.append(Subject("attention", "fwd", heads, attention(forward), "attention"))
    found.append(Subject("attention", "bwd", heads, both, "attention"))
    looks = each(ROWS=[4, 8, 16], BLOCK=[256, 512], num_warps=[4, 8])
    looks = each(LOOK=looks, CHUNK=[64, 128, 256])
    turned = each(ROWS=[64, 128], COLUMNS=[64, 128], WARPS=[4, 8])
    found.append(Subject("quantise_float8", "fwd", large, [*looks, *turned], "float8"))
    return found


def shown(candidate: dict) -> str:
    return str(candidate.get("shown", candidate))


def settings(candidate: dict) -> dict:
    return {name: value for name, value in candidate.items() if name != "shown"}


def compile_share(subject: Subject, device: str, own: int, jobs: int) -> None:
    """Launches each jobs-th candidate once, so that its kernels lie in Triton's cache."""
    if subject.op == "adamw_ema":  # few candidates, and tensors too large to have in every process
        own, jobs = (0, 1) if own == 0 else (len(subject.candidates), 1)
    call = subject.call(device)
    for candidate in subject.candidates[own::jobs]:
        # What cannot be launched is told when it is timed.
        with subject.under(settings(candidate)), contextlib.suppress(Exception):
            timed = call.timed(subject.mode)
            with contenders.recorded(subject.mode):
                timed()


def measure(subject: Subject, device: str) -> Iterator[str]:
    """Tries the candidates. Yields what to print of those that fail."""
    call = subject.call(device)
    own = call.values()
    once, evict = stopwatch(device), Evictor(device)
    for candidate in [{}, *subject.candidates]:
        with subject.under(settings(candidate)):
            try:
                made = call.values()
                timed = call.timed(subject.mode)
                repeats = REPEATS if device == "cuda" else 1
                with contenders.recorded(subject.mode):
                    samples = [once(timed, evict) for _ in range(repeats)]
            except Exception as error:  # too much shared memory, say: another way not to be chosen
                yield f"{subject.name} {subject.mode} {shown(candidate)}: {str(error)[:120]}"
                continue
        apart = [float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
                 for a, b in zip(made, own, strict=True) if b.numel()]  # fmt: skip
        if all(a <= APART for a in apart):  # not so where there is a NaN
            subject.found.append((statistics.median(samples), candidate))
        else:
            yield f"{subject.name} {subject.mode} {shown(candidate)}: WRONG, apart by {apart}"


def table(subject: Subject, copy: float, most: int = 8) -> str:
    own = next(seconds for seconds, candidate in subject.found if not candidate)
    lines = [
        f"\n{subject.name} {subject.mode} ({subject.cases['cuda']}), {len(subject.found)} tried"
    ]
    best = sorted(subject.found, key=lambda pair: pair[0])[:most]
    for seconds, candidate in [*best, (own, {})]:
        name = shown(candidate) if candidate else "as in the source"
        share = 100 * subject.bytes() / copy / seconds
        lines.append(
            f"{1e6 * seconds:10.1f} us {share:5.0f} % of copy {own / seconds:6.2f}x  {name}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--only", default="", help="names that contain this: adaln, gelu, ...")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile first")
    parser.add_argument("--share", type=int, nargs=2, metavar=("I", "N"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; --device cpu runs each candidate once, in the interpreter")
    chosen = [s for s in subjects() if args.only in s.name]
    if args.jobs > 1:
        command = [
            sys.executable,
            __file__,
            "--only",
            args.only,
            "--device",
            args.device,
            "--share",
        ]
        workers = [subprocess.Popen([*command, str(i), str(args.jobs)], stdout=subprocess.DEVNULL)
                   for i in range(args.jobs)]  # fmt: skip
        for worker in workers:
            worker.wait()
    if args.share:
        for subject in chosen:
            compile_share(subject, args.device, *args.share)
        return
    copy = copy_rate(args.device)
    for subject in chosen:
        for line in measure(subject, args.device):
            print(line, flush=True)
        print(table(subject, copy), flush=True)


if __name__ == "__main__":
    main()
