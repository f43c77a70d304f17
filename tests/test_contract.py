"""The contract of the ops: every implementation x every case x every dtype against the definition.

The oracle is the definition in float64. The yardstick is plain torch in the tested dtype: an
implementation may be at most twice as far from the oracle, for the output and each gradient.
Triton kernels run in Triton's interpreter where there is no GPU (see conftest.py).
"""

import ctypes
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import unless_torchs
from ldae_fast.kernels import info, native
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from ldae_fast import ops

OPS = (
    "normal",
    "patch_pca_noise",
    "denoise_loss",
    "layernorm_modulate",
    "gate_residual_layernorm_modulate",
    "attention",
    "mlp_gelu",
    "adamw_ema",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NATIVE = pytest.mark.skipif(bool(native.MISSING), reason=native.MISSING or "built")


def cases(op: str):
    return importlib.import_module(f"ldae_fast.kernels.{op}.cases")


def call(op: str, case: str, dtype: torch.dtype, seed: int = 0) -> tuple[list, dict]:
    """The case's arguments and options on the device under test."""
    arguments, options = cases(op).inputs(case, dtype, seed)
    return [move(a) for a in arguments], {k: move(v) for k, v in options.items()}


def move(value):
    if isinstance(value, list):
        return [move(v) for v in value]
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value


def exact(value):
    """The same in float64, lists too; what is no float stays."""
    if isinstance(value, list):
        return [exact(v) for v in value]
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.double()
    return torch.float64 if isinstance(value, torch.dtype) else value


def flat(outputs) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return list(outputs.values()) if isinstance(outputs, dict) else list(outputs)


def drawn(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """A fixed gradient for each."""
    g = torch.Generator().manual_seed(7)
    return [torch.randn(o.shape, generator=g).to(o) for o in outputs]


def run(
    op: str, impl: str, arguments: list, options: dict, gradient: bool = True, upstream=drawn
) -> list:
    """Outputs, then the gradient of every differentiable argument for fixed upstream gradients."""
    function = getattr(ops, op) if impl != "plain" else cases(op).plain
    options = options if impl == "plain" else options | {"impl": impl}
    if getattr(cases(op), "MUTATES", False):
        lists = [[t.clone() for t in a] for a in arguments]
        function(*lists, **options)
        return [t for one in lists for t in one]
    leaves = list(arguments)
    wanted = cases(op).DIFFERENTIABLE if gradient else ()
    for i in wanted:
        leaves[i] = arguments[i].detach().clone().requires_grad_()
    try:
        outputs = flat(function(*leaves, **options))
    except ValueError as reason:
        # Kernels for a GPU take no head_dim of 12, or no sequence of 1.
        if DEVICE == "cuda" and op == "attention" and "cannot run here" in str(reason):
            pytest.skip(str(reason))
        raise
    if not wanted:
        return outputs
    given = upstream(outputs)
    return [*outputs, *torch.autograd.grad(outputs, [leaves[i] for i in wanted], given)]


def plain(op: str, arguments: list, options: dict) -> list[torch.Tensor]:
    """What torch alone gives in the arguments' dtype: the yardstick."""
    return run(op, "plain" if hasattr(cases(op), "plain") else "reference", arguments, options)


def refusal(op: str, impl: str, dtype: torch.dtype) -> str:
    """Why this implementation is not under test here; '' when it is."""
    fits_most = DEVICE == "cuda" and op == "attention"
    name = "small" if fits_most else next(iter(cases(op).SHAPES))
    try:
        arguments, options = call(op, name, dtype)
        run(op, impl, arguments, options, gradient=False)
    except (ValueError, pytest.skip.Exception) as error:
        return str(error)
    return ""


def under_test() -> list[tuple[str, str, str]]:
    """(op, implementation, dtype) for everything that runs on this machine."""
    found = []
    for op in OPS:
        table = importlib.import_module(f"ldae_fast.kernels.{op}").IMPLEMENTATIONS
        for impl in table:
            if impl != "reference":
                found += [(op, impl, d) for d, t in DTYPES.items() if not refusal(op, impl, t)]
    return found


UNDER_TEST = under_test()


def rows(shapes: bool = True, dtypes=tuple(DTYPES)) -> list:
    return [
        pytest.param(op, impl, name, dtype, id="-".join(filter(None, (op, impl, name, dtype))))
        for op, impl, dtype in UNDER_TEST
        for name in (cases(op).SHAPES if shapes else [None])
        if dtype in dtypes
    ]


M_PERTURB, NAN_BYTES = -6, 0x100  # by mallopt: what is not asked of it is ^ 0xff, all ones
malloc_begins_as = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's


@pytest.fixture(autouse=True)
def outputs_begin_as_nan():
    """Memory that a kernel forgot to write is NaN: torch's by torch, C++'s by the C library."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    if malloc_begins_as:
        malloc_begins_as(M_PERTURB, NAN_BYTES)
    yield
    if malloc_begins_as:
        malloc_begins_as(M_PERTURB, 0)
    torch.use_deterministic_algorithms(False)


def keeps_pieces_aside() -> bool:
    """Whether this process began without the setting of conftest.py, which `-n` hands on."""
    at_start = Path("/proc/self/environ")
    return not at_start.exists() or b"malloc.tcache_count=0" not in at_start.read_bytes()


@pytest.mark.skipif(not malloc_begins_as, reason="the C library is not glibc")
@pytest.mark.skipif(keeps_pieces_aside(), reason="one in some hundred small pieces is not NaN here")
@pytest.mark.parametrize("elements", [1, 37, 1000, 1 << 20])
def test_outputs_begin_as_nan(elements):
    """Also where torch does not fill them, as it does not for C++."""
    torch.use_deterministic_algorithms(False)
    made = [torch.empty(elements) for _ in range(40)]
    assert all(x.isnan().all() for x in made)


def error(got: torch.Tensor, truth: torch.Tensor) -> float:
    """The largest absolute difference; infinite for a NaN."""
    if not truth.numel():
        return 0.0
    difference = (got.detach().double() - truth.detach()).abs().max()
    return float("inf") if difference.isnan() else float(difference)


@NATIVE
def test_nothing_is_left_untested():
    """Each op with a compiled and a Triton form has both among the rows below."""
    tested = {(op, impl) for op, impl, _ in UNDER_TEST}
    for op in OPS:
        own = {impl for o, impl in tested if o == op}
        # The short attention kernel refuses these heads: test_attention_kernels.py has its own.
        assert op == "attention" or "triton" in own, (op, refusal(op, "triton", torch.float32))
        assert own & {"cpp", "matmul"} or DEVICE == "cuda", (op, own)


def marked(row):
    _, impl, case, dtype = row.values
    return pytest.param(*row.values, id=row.id, marks=unless_torchs(impl, DTYPES[dtype], case))


@pytest.mark.parametrize(("op", "impl", "case", "dtype"), [marked(row) for row in rows()])
def test_error_at_most_twice_torchs(op, impl, case, dtype):
    """Worst of some draws on either side: a maximum over few values is a lottery."""
    worst, draws = None, 3
    for seed in range(40):
        if seed == draws:
            break
        arguments, options = call(op, case, DTYPES[dtype], seed)
        truth = run(op, "reference", exact(arguments), {k: exact(v) for k, v in options.items()})
        ours = run(op, impl, arguments, options)
        assert [o.shape for o in ours] == [t.shape for t in truth]
        pairs = [
            (error(a, t), error(b, t))
            for a, b, t in zip(ours, plain(op, arguments, options), truth)
        ]
        worst = pairs if worst is None else [tuple(map(max, *both)) for both in zip(worst, pairs)]
        scale = [max(1.0, float(t.detach().abs().max())) if t.numel() else 1.0 for t in truth]
        fewest = min((t.numel() for t in truth if t.numel()), default=64)
        draws = max(draws, 64 // fewest)
    for index, (mine, torchs) in enumerate(worst):
        # Below one unit in the last place of the largest value there is nothing to compare.
        floor = torch.finfo(ours[index].dtype).eps * scale[index] / 2
        assert mine <= 2 * max(torchs, floor), f"tensor {index}: {mine} against {torchs}"


@pytest.mark.parametrize(("op", "impl", "_", "dtype"), rows(shapes=False))
def test_repeats_are_bit_equal(op, impl, _, dtype):
    arguments, options = call(op, "odd", DTYPES[dtype])
    first = run(op, impl, arguments, options)
    # The interpreter runs one program after the other: what differs there differs at once.
    for _ in range(2 if impl == "triton" and DEVICE == "cpu" else 20):
        assert all(torch.equal(a, b) for a, b in zip(first, run(op, impl, arguments, options)))


def on_threads(count: int, work):
    try:
        torch.set_num_threads(count)
        return work()
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("op", "impl", "_", "dtype"),
    [r for r in rows(False) if r.values[1] == "cpp" and r.values[0] != "mlp_gelu"],
)
def test_threads_change_no_bit(op, impl, _, dtype):
    """Fewer and more of them than there are pieces of work. Other tests compute on one."""
    for case in ("odd", "small"):
        arguments, options = call(op, case, DTYPES[dtype])
        alone, *others = [
            on_threads(count, lambda: run(op, impl, arguments, options))  # noqa: B023
            for count in (1, 2, 7)
        ]
        assert all(torch.equal(a, b) for other in others for a, b in zip(alone, other))


@NATIVE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_no_bit_of_cpp_gelu(dtype):
    """The middle alone: the products around it are torch's, which change theirs."""
    g = torch.Generator().manual_seed(0)
    u, dout = torch.randn(2, 513, 300, generator=g).to(dtype)
    bias = torch.randn(300, generator=g)
    forward, backward = torch.ops.ldae.bias_gelu_forward, torch.ops.ldae.bias_gelu_backward
    alone, *others = [
        on_threads(n, lambda: (forward(u, bias, False), *backward(dout, u, bias, False)))
        for n in (1, 2, 7)
    ]
    assert all(torch.equal(a, b) for other in others for a, b in zip(alone, other))


def spread(value):
    """Every other element of a larger tensor whose other elements are poison."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    poison = torch.nan if value.is_floating_point() else 1
    wide = torch.full((*value.shape[:-1], 2 * value.shape[-1]), poison).to(value)
    wide[..., ::2] = value
    return wide[..., ::2]


@pytest.mark.parametrize(("op", "impl", "_", "dtype"), rows(False))
def test_strided_arguments_give_the_same(op, impl, _, dtype):
    if getattr(cases(op), "MUTATES", False):
        pytest.skip("test_ops.py has the lists of tensors that are updated in place")
    for case in ("odd", "prime"):
        arguments, options = call(op, case, DTYPES[dtype])
        strided = [spread(a) for a in arguments], {k: spread(v) for k, v in options.items()}
        for a, b in zip(run(op, impl, arguments, options), run(op, impl, *strided)):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# mlp_gelu's gradients are sums over a batch, and torch's products of few rows depend on how many.
PER_SAMPLE = (
    "normal",
    "patch_pca_noise",
    "denoise_loss",
    "layernorm_modulate",
    "gate_residual_layernorm_modulate",
    "attention",
)


@pytest.mark.parametrize(
    ("op", "impl", "_", "dtype"), [r for r in rows(False) if r.values[0] in PER_SAMPLE]
)
def test_a_sample_does_not_see_its_batch(op, impl, _, dtype):
    arguments, options = call(op, "odd", DTYPES[dtype])
    batch = 3  # of every op's case "odd"

    def one(v):
        return v[1:2] if isinstance(v, torch.Tensor) and v.shape[:1] == (batch,) else v

    def of_one(outputs):
        return [g[1:2] for g in drawn([o.expand(batch, *o.shape[1:]) for o in outputs])]

    whole = run(op, impl, arguments, options)
    some = [*map(one, arguments)], {k: one(v) for k, v in options.items()}
    alone = run(op, impl, *some, upstream=of_one)
    assert all(len(a) == batch and torch.equal(a[1:2], b) for a, b in zip(whole, alone))


@pytest.mark.parametrize(("op", "impl", "_", "dtype"), rows(False))
def test_autocast(op, impl, _, dtype):
    """Under autocast each implementation returns what the definition returns, dtypes too."""
    arguments, options = call(op, "odd", DTYPES[dtype])
    with torch.autocast(DEVICE, torch.float16 if impl == "triton" else torch.bfloat16):
        ours = run(op, impl, arguments, options)
        theirs = run(op, "reference", arguments, options)
    for a, b in zip(ours, theirs):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=3e-2, atol=6e-2)


class Recorder(TorchDispatchMode):
    """Keeps the calls of our registered ops."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace.startswith("ldae"):
            self.calls[str(function)] = function, args, kwargs or {}
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(("op", "impl", "_", "dtype"), rows(False))
def test_opcheck(op, impl, _, dtype):
    """Torch's own checks on every registered op that a call goes through, backward too.

    The fourth, ahead-of-time tracing, sees through Triton ops to their kernels, which the
    interpreter cannot trace: it needs a GPU.
    """
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    if impl != "triton" or DEVICE == "cuda":
        checks = (*checks, "test_aot_dispatch_dynamic")
    arguments, options = call(op, "odd", DTYPES[dtype])
    with Recorder() as recorder:
        run(op, impl, arguments, options)
    if impl in ("cpp", "triton"):
        assert recorder.calls
    for name, (function, args, kwargs) in recorder.calls.items():
        has_backward = "forward" in name or "denoise_loss" in name
        fresh = [
            a.detach().clone().requires_grad_(has_backward and a.is_floating_point())
            if isinstance(a, torch.Tensor)
            else a
            for a in args
        ]
        torch.library.opcheck(function, fresh, kwargs, test_utils=checks)


@pytest.mark.parametrize(
    ("op", "impl", "_", "dtype"),
    [
        r
        for r in rows(False)
        if getattr(cases(r.values[0]), "DIFFERENTIABLE", ()) and not r.values[1].startswith("sdpa")
    ],
)
def test_a_second_derivative_is_refused(op, impl, _, dtype):
    """A kernel's backward pass has no derivative: it would count as a constant. Definitions do."""
    arguments, options = call(op, "odd", DTYPES[dtype])
    leaves = [arguments[i].requires_grad_() for i in cases(op).DIFFERENTIABLE]

    def gradients(impl):
        outputs = flat(getattr(ops, op)(*arguments, **options, impl=impl))
        ones = [torch.ones_like(o, requires_grad=True) for o in outputs]
        return torch.autograd.grad(outputs, leaves, ones, create_graph=True)

    assert all(g.requires_grad for g in gradients("reference"))
    with pytest.raises(RuntimeError, match=f"^{op}: .* differentiated by impl='reference'"):
        gradients(impl)


@pytest.mark.parametrize("op", [op for op in OPS if getattr(cases(op), "DIFFERENTIABLE", ())])
def test_what_only_definitions_differentiate_is_theirs(op):
    """Tangents and torch.func: a kernel would give zeros. "auto" leaves them, a name is refused."""
    arguments, options = call(op, "odd", torch.float32)
    wanted = cases(op).DIFFERENTIABLE
    primals = tuple(arguments[i] for i in wanted)
    directions = tuple(map(torch.randn_like, primals))

    def of(impl):
        def function(*leaves):
            given = dict(zip(wanted, leaves))
            all_of_them = [given.get(i, a) for i, a in enumerate(arguments)]
            return tuple(flat(getattr(ops, op)(*all_of_them, **options, impl=impl)))

        return function

    def carried(impl):
        return torch.func.jvp(of(impl), primals, directions)[1]

    def by_dual_numbers(impl):
        with forward_ad.dual_level():
            pairs = map(forward_ad.make_dual, primals, directions)
            return tuple(forward_ad.unpack_dual(o).tangent for o in of(impl)(*pairs))

    def back(impl):
        total = lambda *leaves: sum(o.sum() for o in of(impl)(*leaves))  # noqa: E731
        return torch.func.grad(total, tuple(range(len(wanted))))(*primals)

    kernels = {impl for o, impl, dtype in UNDER_TEST if (o, dtype) == (op, "float32")}
    for derivative in (carried, by_dual_numbers, back):
        exact = derivative("reference")
        assert all(e.abs().max() > 0 for e in exact)
        torch.testing.assert_close(derivative("auto"), exact)
        for impl in kernels:
            with pytest.raises(ValueError, match=r"forward-mode derivatives and torch\.func take"):
                derivative(impl)


@pytest.mark.parametrize(
    ("op", "names"),
    [
        ("denoise_loss", ("pred", "images", "basis", "level_weight")),
        ("patch_pca_noise", ("images", "basis", "center", "scale", "gamma", "sigma")),
    ],
)
def test_gradients_that_no_kernel_gives_are_the_definitions(op, names):
    """A learned weight of the loss, or a basis that learns, would get none without a word."""
    arguments, options = call(op, "odd", torch.float32)
    images = names.index("images")
    arguments[images] = arguments[images].permute(0, 3, 1, 2) / 255
    kernels = {impl for o, impl, dtype in UNDER_TEST if (o, dtype) == (op, "float32")}
    for i, name in enumerate(names):
        given = [a.detach().clone() for a in arguments]
        given[i].requires_grad_()
        grads = [
            torch.autograd.grad(
                sum(o.sum() for o in flat(getattr(ops, op)(*given, **how))), given[i]
            )
            for how in (options, options | {"impl": "reference"})
        ]
        assert grads[1][0].abs().max() > 0
        torch.testing.assert_close(*grads)
        for impl in kernels if name != "pred" else ():
            with pytest.raises(ValueError, match=f"{name} requires a gradient, which impl='refer"):
                getattr(ops, op)(*given, **options, impl=impl)
            with torch.no_grad():
                getattr(ops, op)(*given, **options, impl=impl)


@pytest.mark.parametrize("op", [op for op in OPS if getattr(cases(op), "DIFFERENTIABLE", ())])
def test_gradcheck_of_the_definition(op):
    arguments, options = call(op, "one", torch.float32)
    arguments, options = exact(arguments), {k: exact(v) for k, v in options.items()}
    wanted = cases(op).DIFFERENTIABLE
    leaves = [a.requires_grad_() if i in wanted else a for i, a in enumerate(arguments)]

    def function(*some):
        full = list(leaves)
        for i, value in zip(wanted, some):
            full[i] = value
        return tuple(flat(getattr(ops, op)(*full, impl="reference", **options)))

    assert torch.autograd.gradcheck(function, tuple(leaves[i] for i in wanted))


# adamw_ema's step and rate are numbers that are new in every call, so it is not for torch.compile.
@pytest.mark.parametrize("op", [op for op in OPS if op != "adamw_ema"])
def test_fullgraph_without_recompiling(op):
    """One graph without a break, and nothing compiled after the second of three batch sizes; the
    same implementation in it as outside, to the bit."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(getattr(ops, op), fullgraph=True, dynamic=True, backend=counter)
    arguments, options = call(op, "small", torch.float32)
    batch = 4  # of every op's case "small"
    compiled = []
    for size in range(batch, batch - 3, -1):

        def part(v, size=size):
            batched = isinstance(v, torch.Tensor) and v.shape[:1] == (batch,)
            return v[:size] if batched else v

        some, rest = [*map(part, arguments)], {k: part(v) for k, v in options.items()}
        for a, b in zip(flat(function(*some, **rest)), run(op, "auto", some, rest, False)):
            assert torch.equal(a, b)
        compiled.append(counter.frame_count)
    assert compiled[1] == compiled[2], compiled


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("op", [op for op in OPS if op != "adamw_ema"])
def test_shapes_without_data(op, impl):
    """Tensors on the meta device give what real ones give, but for the numbers."""
    arguments, options = call(op, "small", torch.float32)
    meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]
    without = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    ours = flat(getattr(ops, op)(*meta, **without, impl=impl))
    for a, b in zip(ours, run(op, "reference", arguments, options, False), strict=True):
        assert (a.device.type, a.shape, a.dtype) == ("meta", b.shape, b.dtype)


@NATIVE
@pytest.mark.parametrize("op", ["normal", "patch_pca_noise"])
def test_a_new_step_compiles_nothing(op):
    """Seed and step are numbers that a graph is given, not ones that are compiled into it."""
    torch._dynamo.reset()
    counter, compiled = CompileCounterWithBackend("aot_eager"), []
    function = torch.compile(getattr(ops, op), fullgraph=True, backend=counter)
    arguments, options = call(op, "small", torch.float32)
    for step in range(4):
        if op == "normal":
            arguments[:2] = 2**64 - 1 - step, step
        else:
            options |= {"seed": 2**64 - 1 - step, "step": step}
        made, wanted = function(*arguments, **options), run(op, "auto", arguments, options)
        assert all(torch.equal(a, b) for a, b in zip(flat(made), wanted))
        compiled.append(counter.frame_count)
    assert compiled[1] == compiled[3], compiled


@NATIVE
@pytest.mark.parametrize("op", ["denoise_loss", "patch_pca_noise"])
def test_another_image_side_compiles_nothing(op):
    """The sides that a check compares are not compiled into a graph by the words of its refusal."""
    torch._dynamo.reset()
    counter, compiled = CompileCounterWithBackend("aot_eager"), []
    function = torch.compile(getattr(ops, op), fullgraph=True, backend=counter)
    view, ones, basis = ops.ImageView(4), torch.ones(2), torch.eye(48)[:8].contiguous()
    for side in (8, 16, 24, 32):
        images = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
        if op == "denoise_loss":
            function(torch.randn(2, (side // 4) ** 2, 48), images, basis, ones, view=view)
        else:
            function(images, basis, torch.zeros(48), torch.ones(8), ones, ones, torch.arange(2),
                     seed=3, step=4, view=view)  # fmt: skip
        compiled.append(counter.frame_count)
    assert compiled[1] == compiled[3], compiled


@NATIVE
@pytest.mark.parametrize("offset", [100.0, 1000.0, 10000.0])
def test_a_mean_far_from_zero(offset):
    """No farther from float64 than torch's LayerNorm where the mean is much larger than the spread:
    the fixed cases, all around zero, do not see a mean that lost digits."""
    g = torch.Generator().manual_seed(0)
    x = offset + torch.randn(4, 16, 383, generator=g)
    shift, scale = torch.randn(2, 4, 383, generator=g) / 10
    truth = ops.layernorm_modulate(*exact([x, shift, scale]), impl="reference")
    norm = torch.nn.functional.layer_norm(x, (383,), eps=1e-6)
    torchs = norm * (1 + scale[:, None]) + shift[:, None]
    ours = ops.layernorm_modulate(x, shift, scale, impl="cpp")
    assert error(ours, truth) <= error(torchs, truth)


@NATIVE
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, -1])
@pytest.mark.parametrize("argument", ["x", "shift", "scale"])
def test_adaln_keeps_every_nan(argument, bits):
    """Also one with ones in all lower bits, which rounding to bfloat16 could carry into a zero."""
    given = {"x": torch.randn(2, 3, 40).bfloat16(), "shift": torch.randn(2, 40),
             "scale": torch.randn(2, 40)}  # fmt: skip
    nan = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    given[argument][0].view(-1)[7] = nan
    out = ops.layernorm_modulate(**given, impl="cpp")
    reference = ops.layernorm_modulate(**given, impl="reference")
    assert torch.equal(out.isnan(), reference.isnan())


@NATIVE
@pytest.mark.parametrize("kinds", [("bfloat16",) * 3, ("float32",) * 3, ("float16",) * 3,
                                   ("float32", "bfloat16", "float64")])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 40, 72])
def test_adaln_takes_vectors_as_they_lie(kinds, dtype, width):
    """Pieces of one tensor in their own dtypes give bit by bit what float32 copies give."""
    g = torch.Generator().manual_seed(0)
    x, y, dh, dout = torch.randn(4, 3, 5, width, generator=g).to(dtype)
    base = torch.randn(3, 4 * width, generator=g)
    bases = [base.clone().to(DTYPES.get(k, torch.float64)).requires_grad_() for k in kinds]
    pieces = [b[:, (i + 1) * width : (i + 2) * width] for i, b in enumerate(bases)]
    copies = [v.detach().float().contiguous().requires_grad_() for v in pieces]
    for op, given in (
        (ops.gate_residual_layernorm_modulate, (x, y)),
        (ops.layernorm_modulate, (x,)),
    ):
        kept = slice(2 - len(given), 3)  # without a gate where there is no y
        grads = (dh, dout)[2 - len(given) :]
        ours, theirs = (flat(op(*given, *v[kept], impl="cpp")) for v in (pieces, copies))
        assert all(map(torch.equal, ours, theirs))
        mine = torch.autograd.grad(ours, bases[kept], grads)
        for i, (got, wanted) in enumerate(
            zip(mine, torch.autograd.grad(theirs, copies[kept], grads), strict=True), kept.start
        ):
            piece = got[:, (i + 1) * width : (i + 2) * width]
            assert torch.equal(piece, wanted.to(got.dtype))
            assert torch.count_nonzero(got) == torch.count_nonzero(piece)


@NATIVE
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_gelu_takes_a_bias_of_any_float_type(kind):
    """Bit by bit what a float32 copy gives, the gradient in the bias's own type."""
    g = torch.Generator().manual_seed(0)
    u, dout = torch.randn(2, 200, 72, generator=g).bfloat16()
    bias = torch.randn(72, 2, generator=g).to(kind)[:, 0].requires_grad_()
    copy = bias.detach().float().contiguous().requires_grad_()
    ours, theirs = (torch.ops.ldae.bias_gelu_forward(u, b, False) for b in (bias, copy))
    assert torch.equal(ours, theirs)
    (got,) = torch.autograd.grad(ours, bias, dout)
    (wanted,) = torch.autograd.grad(theirs, copy, dout)
    assert torch.equal(got, wanted.to(kind))


@NATIVE
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_over_its_whole_range(approximate):
    """Relative error against float64, in the far tails too, where cancelling would lose it all."""
    x = torch.cat([torch.linspace(-12, 12, 20001), torch.tensor([-1e4, 1e4, 0.0, -0.0])])
    one, zero = torch.ones(1, 1), torch.zeros(1)
    options = {"approximate": approximate}
    got = run("mlp_gelu", "cpp", [x[:, None], one, zero, one, zero], options)
    truth = run("mlp_gelu", "reference", exact([x[:, None], one, zero, one, zero]), options)
    # erfc and sigmoid keep their digits in the tail, where torch's own 1 + erf and 1 + tanh cancel.
    wide = x.double()[:, None]
    inner = (2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)
    tail = torch.sigmoid(2 * inner) if approximate == "tanh" else torch.erfc(-wide / 2**0.5) / 2
    truth[0] = wide * tail
    for a, t in zip(got[:2], truth[:2]):
        # exp(-x^2 / 2) turns the rounding of its argument into a relative error that grows with it.
        allowed = t.abs() * (1e-6 + 2e-7 * inner.abs().clamp_min(wide**2)) + 1e-30
        close = (a.double() - t).abs() <= allowed + 3e-7 * (a is not got[0])
        assert close.all(), (x[~close[:, 0]][:5], a[~close][:5], t[~close][:5])


@NATIVE
@pytest.mark.skipif(DEVICE == "cuda", reason="about the CPU library")
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_keeps_its_digits_in_the_tail(approximate):
    """Value by value: the contract's largest error does not see what is small."""
    reach = {"none": 12, "tanh": 6}[approximate]
    x = torch.linspace(-reach, reach, 4001).bfloat16()
    u = x.clone().requires_grad_()
    got = torch.ops.ldae.bias_gelu_forward(u, torch.zeros(len(x)), approximate == "tanh")
    (slope,) = torch.autograd.grad(got.sum(), u)
    z = x.double().requires_grad_()
    if approximate == "none":
        true = z * torch.special.erfc(-z * 0.5**0.5) / 2
    else:
        true = z * torch.sigmoid((8 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))
    (true_slope,) = torch.autograd.grad(true.sum(), z)
    half_a_unit = 2**-8
    assert ((got - true).abs() <= 1.1 * half_a_unit * true.abs()).all()
    # The slope crosses zero at -0.75, by a difference of two terms of about 0.2.
    crossing = 1e-4 * ((x > -1.5) & (x < 0))
    assert ((slope - true_slope).abs() <= 1.1 * half_a_unit * true_slope.abs() + crossing).all()


@NATIVE
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_far_from_zero_is_the_line_or_nothing(approximate, dtype):
    """Where the density is less than the smallest float: x and slope 1, or 0 and 0."""
    x = torch.tensor([13.0, 13.2, 13.25, 14, 20, 1e3, 1e9, 1e13, 1e18]).to(dtype)
    u = torch.cat([x, -x])[None].requires_grad_()
    got = torch.ops.ldae.bias_gelu_forward(u, torch.zeros(2 * len(x)), approximate == "tanh")
    (slope,) = torch.autograd.grad(got.sum(), u)
    wanted = torch.cat([x, torch.zeros_like(x)])[None]
    assert torch.allclose(got, wanted, rtol=0, atol=1e-30), got
    assert torch.allclose(slope, (wanted > 0).to(dtype), rtol=0, atol=1e-30), slope


@NATIVE
def test_a_row_of_one_value_has_no_negative_variance():
    """Sums of squares and their correction cancel, and leave rounding of either sign."""
    g = torch.Generator().manual_seed(0)
    value = 10 ** (2 + 6 * torch.rand(1, 4000, 1, generator=g))
    for width in (1000, 1773, 2039):
        x, zero = value.expand(-1, -1, width).contiguous(), torch.zeros(1, width)
        out = ops.layernorm_modulate(x, zero, zero, impl="cpp")
        assert out.isfinite().all(), value[0, ~out.isfinite().all(2)[0], 0]


@NATIVE
def test_statistics_are_those_of_the_sum_as_it_is_returned():
    """Rounded to bfloat16 and read again, not those of the float32 sum before that."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2, 37, 72, generator=g).bfloat16()
    gate, shift, scale = torch.randn(3, 2, 72, generator=g)
    h, out = ops.gate_residual_layernorm_modulate(x, y, gate, shift, scale, impl="cpp")
    assert torch.equal(out, ops.layernorm_modulate(h, shift, scale, impl="cpp"))


@NATIVE
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_each_instruction_set(isa):
    """The same comparison in a process that is held to that instruction set."""
    if isa not in info.instruction_sets()["available"]:  # the library would take another
        pytest.skip(f"this CPU has no {isa}")
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "import test_contract as t\n"
        "for op, impl, dtype in t.UNDER_TEST:\n"
        "    if impl == 'cpp':\n"
        "        for case in ('odd', 'prime', 'small'):\n"
        "            t.test_error_at_most_twice_torchs(op, impl, case, dtype)\n"
        "for approximate in ('none', 'tanh'):\n"
        "    t.test_gelu_keeps_its_digits_in_the_tail(approximate)\n"
        "    for dtype in (t.torch.float32, t.torch.bfloat16):\n"
        "        t.test_gelu_far_from_zero_is_the_line_or_nothing(approximate, dtype)\n"
        "t.test_statistics_are_those_of_the_sum_as_it_is_returned()\n"
        "t.test_a_row_of_one_value_has_no_negative_variance()\n"
    )
    environment = os.environ | {"LDAE_ISA": isa}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


@NATIVE
@pytest.mark.skipif(DEVICE == "cuda", reason="about the CPU library")
def test_named_implementation_never_falls_back():
    x = torch.randn(2, 3, 8).half()
    v = torch.randn(2, 8).half()
    with pytest.raises(
        ValueError, match="impl 'cpp' cannot run here: it takes float32 or bfloat16"
    ):
        ops.layernorm_modulate(x, v, v, impl="cpp")
    assert ops.layernorm_modulate(x, v, v).dtype == torch.float16


@NATIVE
def test_raw_ops_check_sizes():
    """The registered op itself refuses what its kernel would read out of bounds."""
    x, v = torch.randn(2, 3, 8), torch.randn(2, 7)
    with pytest.raises(RuntimeError, match="shift must have size 8 in dimension 1; got 7"):
        torch.ops.ldae.adaln_forward(x, None, None, v, v, 1e-6)
    with pytest.raises(RuntimeError, match=r"u must be \(..., 7\)"):
        torch.ops.ldae.bias_gelu_forward(x, v[0], False)


def test_without_the_library():
    """LDAE_NATIVE=0: the ops run by their definitions, and a named cpp says why it cannot."""
    code = (
        "import torch; from ldae_fast import ops\n"
        "x, v = torch.randn(2, 3, 8), torch.randn(2, 8)\n"
        "print(ops.layernorm_modulate(x, v, v).shape)\n"
        "ops.layernorm_modulate(x, v, v, impl='cpp')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | {"LDAE_NATIVE": "0"}, check=False)  # fmt: skip
    assert "torch.Size([2, 3, 8])" in done.stdout
    assert "LDAE_NATIVE=0 leaves the compiled library out" in done.stderr
