"""The contract of the ops: every implementation x every case x every dtype against the definition.

The oracle is the definition in float64. The yardstick is plain torch in the tested dtype: an
implementation may be at most twice as far from the oracle, for the output and each gradient.
"""

import importlib
import os
import subprocess
import sys

import pytest
import torch
from ldae_fast.kernels import native
from torch._dynamo.testing import CompileCounterWithBackend

from ldae_fast import ops

IMPLEMENTATIONS = {
    "layernorm_modulate": ("cpp",),
    "gate_residual_layernorm_modulate": ("cpp",),
    "mlp_gelu": ("cpp",),
    "attention": ("matmul", "sdpa"),
}
DTYPES = (torch.float32, torch.bfloat16)
NATIVE = pytest.mark.skipif(bool(native.MISSING), reason=native.MISSING or "built")


def cases(op: str):
    return importlib.import_module(f"ldae_fast.kernels.{op}.cases")


def run(
    op: str, impl: str, arguments: list, gradient: bool = True, **options
) -> list[torch.Tensor]:
    """Outputs, then the gradient of every argument for fixed upstream gradients."""
    leaves = [a.detach().clone().requires_grad_(gradient) for a in arguments]
    outputs = getattr(ops, op)(*leaves, impl=impl, **options)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    if not gradient:
        return outputs
    g = torch.Generator().manual_seed(7)
    upstream = [torch.randn(o.shape, generator=g).to(o.dtype) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, upstream)]


def every_case() -> list:
    rows = []
    for op, impls in IMPLEMENTATIONS.items():
        for impl in impls:
            for name in cases(op).SHAPES:
                marks = [NATIVE] if impl == "cpp" else []
                rows.append(pytest.param(op, impl, name, marks=marks, id=f"{op}-{impl}-{name}"))
    return rows


def plain(op: str, arguments: list) -> list[torch.Tensor]:
    """What torch alone gives in the arguments' dtype: the yardstick."""
    if op != "attention":  # the definition of the others is plain torch
        return run(op, "reference", arguments)
    leaves = [a.detach().clone().requires_grad_() for a in arguments]
    q, k, v = (x.transpose(1, 2) for x in leaves)
    out = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2)
    g = torch.Generator().manual_seed(7)
    upstream = torch.randn(out.shape, generator=g).to(out.dtype)
    return [out, *torch.autograd.grad(out, leaves, upstream)]


def error(got: torch.Tensor, truth: torch.Tensor) -> float:
    """The largest absolute difference."""
    return float((got.detach().double() - truth.detach()).abs().max()) if truth.numel() else 0.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "impl", "case"), every_case())
def test_error_at_most_twice_torchs(op, impl, case, dtype):
    """Worst of five draws on either side: a single maximum is a lottery."""
    worst = None
    for seed in range(5):
        arguments = cases(op).inputs(case, dtype, seed)
        truth = run(op, "reference", [a.double() for a in arguments])
        pairs = [
            (error(a, t), error(b, t))
            for a, b, t in zip(run(op, impl, arguments), plain(op, arguments), truth)
        ]
        worst = pairs if worst is None else [tuple(map(max, *both)) for both in zip(worst, pairs)]
        scale = [max(1.0, float(t.abs().max())) if t.numel() else 1.0 for t in truth]
    for index, (ours, torchs) in enumerate(worst):
        # Below one unit in the last place of the largest value there is nothing to compare.
        floor = torch.finfo(dtype).eps * scale[index] / 2
        assert ours <= 2 * max(torchs, floor), f"tensor {index}: {ours} against {torchs}"


@pytest.mark.parametrize(("op", "impl", "case"), every_case())
def test_repeats_are_bit_equal(op, impl, case):
    arguments = cases(op).inputs(case, torch.bfloat16)
    first = run(op, impl, arguments)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, run(op, impl, arguments)))


@pytest.mark.parametrize(("op", "impl", "case"), every_case())
def test_strided_arguments_give_the_same(op, impl, case):
    """Each argument as every other element of a larger tensor filled with NaN."""
    arguments = cases(op).inputs(case, torch.float32)
    spread = []
    for a in arguments:
        wide = torch.full((*a.shape[:-1], 2 * a.shape[-1]), torch.nan)
        wide[..., ::2] = a
        spread.append(wide[..., ::2])
    for a, b in zip(run(op, impl, arguments, False), run(op, impl, spread, False)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@NATIVE
@pytest.mark.parametrize("op", ["layernorm_modulate", "gate_residual_layernorm_modulate"])
def test_a_sample_does_not_see_its_batch(op):
    arguments = cases(op).inputs("small", torch.bfloat16)
    whole = run(op, "cpp", arguments)
    alone = run(op, "cpp", [a[2:3] for a in arguments], False)
    assert all(torch.equal(a[2:3], b) for a, b in zip(whole, alone))


@NATIVE
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_over_its_whole_range(approximate):
    """Relative error against float64, in the far tails too, where cancelling would lose it all."""
    x = torch.cat([torch.linspace(-12, 12, 20001), torch.tensor([-1e4, 1e4, 0.0, -0.0])])
    one, zero = torch.ones(1, 1), torch.zeros(1)
    got = run("mlp_gelu", "cpp", [x[:, None], one, zero, one, zero], approximate=approximate)
    exact = [a.double() for a in (x[:, None], one, zero, one, zero)]
    truth = run("mlp_gelu", "reference", exact, approximate=approximate)
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
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["adaln", "adaln_alone", "gelu"])
def test_opcheck(name, dtype):
    make = cases("gate_residual_layernorm_modulate").inputs
    x, y, gate, shift, scale = make("odd", dtype)
    vectors = [v.float().requires_grad_() for v in (gate, shift, scale)]
    x, y = x.requires_grad_(), y.requires_grad_()
    if name == "adaln":
        torch.library.opcheck(torch.ops.ldae.adaln_forward.default, (x, y, *vectors, 1e-6))
    elif name == "adaln_alone":
        none = x.detach().new_empty(0)
        empty = (none, none.float())
        call = (x, *empty, *vectors[1:], 1e-6)
        torch.library.opcheck(torch.ops.ldae.adaln_forward.default, call)
    else:
        bias = torch.randn(37, requires_grad=True)
        torch.library.opcheck(torch.ops.ldae.bias_gelu_forward.default, (x, bias, False))


@NATIVE
def test_fullgraph_without_recompiling():
    """One graph without a break, and nothing compiled after the first of three batch sizes."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = set()

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def block(x, y, gate, shift, scale):
        h, out = ops.gate_residual_layernorm_modulate(x, y, gate, shift, scale)
        return h, ops.layernorm_modulate(out, shift, scale)

    for batch in (2, 3, 5):
        arguments = [torch.randn(batch, 7, 16), torch.randn(batch, 7, 16)]
        arguments += [torch.randn(batch, 16) for _ in range(3)]
        h, _ = block(*arguments)
        torch.testing.assert_close(h, arguments[0] + arguments[2][:, None] * arguments[1])
        compiled.add(counter.frame_count)
    assert len(compiled) == 1


@NATIVE
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_each_instruction_set(isa):
    """The same comparison in a process that is held to that instruction set."""
    code = (
        "import test_contract as t, torch\n"
        "for op in ('layernorm_modulate', 'gate_residual_layernorm_modulate', 'mlp_gelu'):\n"
        "    for case in ('odd', 'small'):\n"
        "        t.test_error_at_most_twice_torchs(op, 'cpp', case, torch.float32)\n"
        "        t.test_error_at_most_twice_torchs(op, 'cpp', case, torch.bfloat16)\n"
    )
    environment = os.environ | {"LDAE_ISA": isa, "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


@NATIVE
def test_named_implementation_never_falls_back():
    x = torch.randn(2, 3, 8).half()
    v = torch.randn(2, 8).half()
    with pytest.raises(
        ValueError, match="impl 'cpp' cannot run here: it takes float32 or bfloat16"
    ):
        ops.layernorm_modulate(x, v, v, impl="cpp")
    assert ops.layernorm_modulate(x, v, v).dtype == torch.float16


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
