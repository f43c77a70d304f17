"""attention: every implementation that runs here against the definition in float64."""

import mmap
import os
import subprocess
import sys

import pytest
import torch
from conftest import unless_torchs
from ldae_fast.kernels import info, native, triton_launch
from ldae_fast.kernels.attention import (
    IMPLEMENTATIONS,
    attention,
    attention_packed,
    cases,
    matmul,
    triton_kernel,
)
from ldae_fast.kernels.attention.cases import plain
from ldae_fast.kernels.attention.module import Attention

ON_CPU = ("matmul", "sdpa", "sdpa-flash", "sdpa-math")
if not native.MISSING:
    ON_CPU = ("cpp", *ON_CPU)
TRITON = pytest.mark.skipif(not triton_launch.INTERPRETED, reason="needs TRITON_INTERPRET=1")
TRITON_SHAPES = [(1, 1, 1, 16), (3, 5, 2, 24), (2, 67, 3, 16), (1, 200, 1, 128), (2, 256, 1, 64)]


def takes(impl):
    """float32, or the one dtype that the compiled heads take."""
    return torch.bfloat16 if impl == "cpp" else torch.float32


def results(function, arguments) -> list[torch.Tensor]:
    """The output, then every argument's gradient for a fixed upstream gradient."""
    leaves = [a.detach().clone().requires_grad_() for a in arguments]
    out = function(*leaves)
    g = torch.Generator().manual_seed(7)
    upstream = torch.randn(out.shape, generator=g).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def worst(got, truth) -> float:
    assert got.shape == truth.shape
    assert bool(got.isfinite().all())
    return float((got.double() - truth).abs().max()) if truth.numel() else 0.0


def draws(shape, dtype, count=5):
    for seed in range(count):
        g = torch.Generator().manual_seed(seed)
        yield [torch.randn(shape, generator=g).to(dtype) for _ in range(3)]


def check_error(function, some) -> None:
    """Worst of some draws of q, k, v on either side, as a single maximum is a lottery."""
    ours, torchs, floors = [0.0] * 4, [0.0] * 4, [0.0] * 4
    for arguments in some:
        truth = results(plain, [a.double() for a in arguments])
        for i, (a, b, t) in enumerate(
            zip(results(function, arguments), results(plain, arguments), truth)
        ):
            ours[i], torchs[i] = max(ours[i], worst(a, t)), max(torchs[i], worst(b, t))
            largest = float(t.abs().max()) if t.numel() else 0.0
            floors[i] = max(floors[i], torch.finfo(b.dtype).eps * max(1.0, largest) / 2)
    for i in range(4):
        assert ours[i] <= 2 * max(torchs[i], floors[i]), (i, ours[i], torchs[i])


def through_packed(impl):
    return lambda q, k, v: attention_packed(torch.stack([q, k, v], 2), impl=impl)


@pytest.mark.parametrize(
    ("impl", "name", "dtype"),
    [
        pytest.param(impl, name, dtype, marks=unless_torchs(impl, dtype, name))
        for impl in ON_CPU
        for name in (*cases.SHAPES, "cpu-s")
        if name != "large"  # which is not so by its shape
        for dtype in dict.fromkeys((takes(impl), torch.bfloat16))
    ],
)
def test_error_at_most_twice_torchs(impl, name, dtype):
    shape = (cases.SHAPES | cases.BENCH)[name]
    if name == "cpu-s":
        shape = (1, *shape[1:])
    check_error(lambda *a: attention(*a, impl=impl), draws(shape, dtype))
    check_error(through_packed(impl), draws(shape, dtype))


@pytest.mark.parametrize("size", [1, 10, 60])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_in_16_bits_leave_the_scores_exact(monkeypatch, dtype, size):
    """As on a CPU that multiplies them. Scores of this size overflow in float16."""
    monkeypatch.setitem(matmul.HALVES, dtype, True)
    some = ([size * q, size * k, v] for q, k, v in draws((1, 67, 2, 64), dtype))
    check_error(lambda *a: attention(*a, impl="matmul"), some)


@TRITON
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", TRITON_SHAPES)
def test_triton_error_at_most_twice_torchs(shape, dtype):
    check_error(lambda *a: attention(*a, impl="triton"), draws(shape, dtype, 3))
    check_error(through_packed("triton"), draws(shape, dtype, 3))


@TRITON
@pytest.mark.parametrize("head", [16, 72])
def test_triton_with_scores_far_below_zero(head):
    """A padded key's score is 0, which is far above them all: its weight must not be infinite."""
    arguments = [x + 8 for x in torch.randn(3, 1, 67, 2, head, generator=torch.Generator())]
    arguments[1] = -arguments[1]
    truth = results(plain, [a.double() for a in arguments])
    ours = results(lambda *a: attention(*a, impl="triton"), arguments)
    for a, t in zip(ours, truth):
        torch.testing.assert_close(a.double(), t, rtol=2e-3, atol=2e-3)


@TRITON
def test_triton_writes_every_value_and_reads_none_outside(monkeypatch):
    """Outputs start as NaN, and NaN lies between and after the heads that are read."""
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, torch.nan))
    wide = torch.full((2, 80, 3, 3, 16), torch.nan)
    wide[:, :67, :, :2] = torch.randn(2, 67, 3, 2, 16)
    q, k, v = wide[:, :67, :, :2].unbind(2)
    out, lse = triton_kernel.launch_forward(q, k, v)
    torch.testing.assert_close(out, plain(q, k, v), rtol=1e-5, atol=1e-5)
    dqkv = triton_kernel.launch_backward(torch.ones_like(out), out, lse, q, k, v)
    assert dqkv.isfinite().all()


@TRITON
def test_triton_with_rows_far_apart():
    """The last row lies 2^31 values on; in 32 bits as many before the first, where zeros are."""
    memory = torch.frombuffer(mmap.mmap(-1, 2**33 + 2**10), dtype=torch.float16)  # never touched
    spread = memory.as_strided((1, 3, 1, 16), (0, 2**30, 0, 1), 2**31)
    q, k, v = (x.half() for x in torch.randn(3, 1, 3, 1, 16))
    spread.copy_(k)
    near = results(lambda *a: attention(*a, impl="triton"), (q, k, v))
    out, lse = triton_kernel.launch_forward(q, spread, v)
    assert torch.equal(out, near[0])
    g = torch.Generator().manual_seed(7)
    upstream = torch.randn(out.shape, generator=g).half()
    dqkv = triton_kernel.launch_backward(upstream, out, lse, q, spread, v)
    assert all(map(torch.equal, dqkv.unbind(2), near[1:]))


@TRITON
def test_a_second_derivative_is_refused():
    """As test_contract.py has it of the others, whose heads these kernels do not take."""
    qkv = torch.randn(2, 5, 3, 2, 16, requires_grad=True)
    out = attention_packed(qkv, impl="triton")
    with pytest.raises(RuntimeError, match=r"^attention: .* differentiated by impl='reference'"):
        torch.autograd.grad(out.square().sum(), qkv, create_graph=True)


def test_triton_under_the_interpreter():
    if triton_launch.INTERPRETED or triton_launch.MISSING:
        pytest.skip(triton_launch.MISSING or "this process interprets already")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__, "-k", "triton"],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("impl", ON_CPU)
def test_strided_repeated_and_alone(impl):
    arguments = next(draws((3, 37, 2, 16), torch.bfloat16))
    spread = [torch.full((*a.shape[:-1], 32), torch.nan, dtype=a.dtype) for a in arguments]
    for wide, a in zip(spread, arguments):
        wide[..., ::2] = a
    whole = results(lambda *a: attention(*a, impl=impl), arguments)
    again = results(lambda *a: attention(*a, impl=impl), arguments)
    assert all(torch.equal(a, b) for a, b in zip(whole, again))
    strided = attention(*(wide[..., ::2] for wide in spread), impl=impl)
    torch.testing.assert_close(strided, whole[0], rtol=2e-2, atol=2e-2)
    if impl in ("cpp", "matmul"):
        alone = attention(*(a[1:2] for a in arguments), impl=impl)
        assert torch.equal(alone, whole[0][1:2])


@pytest.mark.parametrize("shape", [(0, 5, 2, 8), (2, 0, 2, 8), (2, 5, 0, 8)])
@pytest.mark.parametrize("impl", ["auto", *ON_CPU])
def test_empty(impl, shape):
    dtype = takes(impl)
    got = results(lambda *a: attention(*a, impl=impl), [torch.empty(shape, dtype=dtype)] * 3)
    assert all(x.shape == shape for x in got)
    qkv = torch.empty(*shape[:2], 3, *shape[2:], dtype=dtype)
    assert attention_packed(qkv, impl=impl).shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_matmul_opcheck(dtype):
    heads = torch.randn(3, 4, 7, 16).to(dtype).requires_grad_()
    torch.library.opcheck(torch.ops.ldae.attention_forward.default, (heads,))


def test_matmul_gradcheck():
    arguments = [torch.randn(2, 5, 2, 4, dtype=torch.float64).requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *a: attention(*a, impl="matmul"), arguments)


@pytest.mark.parametrize("impl", ["auto", *ON_CPU, "reference"])
def test_fullgraph(impl):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: attention_packed(x, impl=impl) + attention(*x.unbind(2), impl=impl),
        fullgraph=True, backend="aot_eager",
    )  # fmt: skip
    x = torch.randn(2, 9, 3, 2, 16).to(takes(impl))
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if impl == "cpp" else {}
    torch.testing.assert_close(compiled(x), 2 * plain(*x.unbind(2)), **tolerance)


@pytest.mark.skipif(bool(native.MISSING), reason=native.MISSING or "built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_over_its_range(dtype):
    """Far tails, infinities and NaN; widths that leave a remainder."""
    for width in (1, 15, 16, 33, 256):
        x = (torch.randn(2, 3, width) * 40).to(dtype)
        x[0, 0, 0], x[1, 2, -1] = -torch.inf if width > 1 else 0.0, torch.nan
        got = matmul.softmax_(x.clone(), 0.5)
        truth = (x.double() * 0.5).softmax(-1)
        assert torch.equal(got.isnan(), truth.isnan())
        tolerance = torch.finfo(dtype).eps
        torch.testing.assert_close(
            got.double(), truth, rtol=64 * tolerance, atol=tolerance / 64, equal_nan=True
        )


@pytest.mark.skipif(bool(native.MISSING), reason=native.MISSING or "built")
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "avx512bf16"])
def test_each_instruction_set(isa):
    if isa not in info.instruction_sets()["available"]:  # the library would take another
        pytest.skip(f"this CPU has no {isa}")
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "import test_attention_kernels as t, torch\n"
        "for dtype in (torch.float32, torch.bfloat16):\n"
        "    t.test_error_at_most_twice_torchs('matmul', 'prime', dtype)\n"
        "    t.test_softmax_over_its_range(dtype)\n"
        "for name in ('one', 'odd', 'prime', 'small'):\n"
        "    t.test_error_at_most_twice_torchs('cpp', name, torch.bfloat16)\n"
        "t.test_heads_read_nothing_outside_and_keep_infinities_apart()\n"
        "t.test_heads_with_every_score_of_a_row_far_below_zero()\n"
    )
    environment = os.environ | {"LDAE_ISA": isa}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(bool(native.MISSING), reason=native.MISSING or "built")
def test_heads_read_nothing_outside_and_keep_infinities_apart():
    """NaN lies between, before and after the heads that are read; an infinite head spoils no other.

    Sizes that leave a remainder in rows, pairs and vectors, and one that leaves none.
    """
    g = torch.Generator().manual_seed(0)
    for tokens, head in ((7, 5), (67, 24), (64, 32)):
        wide = torch.full((2, tokens + 2, 3, 4, head + 3), torch.nan, dtype=torch.bfloat16)
        wide[:, 1:-1, :, 1:3, :head] = torch.randn(2, tokens, 3, 2, head, generator=g).bfloat16()
        wide[0, 3, 1, 1, 0] = torch.inf
        q, k, v = wide[:, 1:-1, :, 1:3, :head].unbind(2)
        out = attention(q, k, v, impl="cpp")
        truth = plain(q.double(), k.double(), v.double())
        assert out[0, :, 0].isnan().any()  # where a query and the infinite key make one
        assert torch.equal(out.isnan(), truth.isnan())
        for b, h in ((0, 1), (1, 0), (1, 1)):
            torch.testing.assert_close(out[b, :, h].double(), truth[b, :, h], rtol=0.02, atol=0.02)
        made = results(lambda *a: attention(*a, impl="cpp"), [x[1:] for x in (q, k, v)])
        assert all(x.isfinite().all() for x in made)


@pytest.mark.skipif(bool(native.MISSING), reason=native.MISSING or "built")
def test_heads_with_every_score_of_a_row_far_below_zero():
    """What fills up a row's vectors must lie below every score that there is, and add nothing."""
    for tokens in (5, 16, 67):
        q = torch.full((1, tokens, 1, 8), 1e16, dtype=torch.bfloat16)
        out = attention(q, -q, torch.ones_like(q), impl="cpp")
        torch.testing.assert_close(out, torch.ones_like(q), rtol=2**-7, atol=0)
        endless = torch.full_like(q, torch.inf)
        assert attention(endless, -torch.ones_like(q), q, impl="cpp").isnan().all()


@pytest.mark.skipif(bool(native.MISSING), reason=native.MISSING or "built")
@pytest.mark.parametrize("sign", [1, -1])
def test_heads_with_scores_far_from_zero(sign):
    """exp of such scores overflows, or vanishes in all of a row."""
    far = (
        [x.bfloat16() for x in (q + 8, sign * (k + 8), v + 8)]
        for q, k, v in draws((1, 67, 2, 24), torch.float32)
    )
    check_error(lambda *a: attention(*a, impl="cpp"), far)


@pytest.mark.skipif(bool(native.MISSING), reason=native.MISSING or "built")
def test_heads_opcheck_and_raw_arguments():
    qkv = torch.randn(2, 7, 3, 2, 16).bfloat16().requires_grad_()
    torch.library.opcheck(torch.ops.ldae.attention_heads.default, (qkv, None, None))
    apart = [x.detach().requires_grad_() for x in qkv.unbind(2)]
    torch.library.opcheck(torch.ops.ldae.attention_heads.default, tuple(apart))
    q, k, v = (x.detach() for x in apart)
    for arguments, message in (
        ((q, k, None), "k and v must be given together"),
        ((q, k[:, :5], v), "k must have size 7 in dimension 1; got 5"),
        ((q, k, v.float()), "v must be bfloat16"),
        ((q.mT, k.mT, v.mT), "q's last dimension must lie together"),
        ((q, None, None), "qkv must have 5 dimensions; got 4"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.ldae.attention_heads(*arguments)


def test_refusals_name_the_reason():
    q = torch.randn(1, 4, 2, 16)
    for impl in IMPLEMENTATIONS:
        if impl in ("reference", "cpp", *ON_CPU) or (
            impl == "triton" and triton_launch.INTERPRETED
        ):
            continue
        with pytest.raises(ValueError, match=f"impl '{impl}' cannot run here: .*cpu"):
            attention(q, q, q, impl=impl)
    with pytest.raises(ValueError, match=r"v\.dtype must be torch.float32"):
        attention(q, q, q.double())
    with pytest.raises(ValueError, match="qkv must be"):
        attention_packed(q)


def test_deterministic_algorithms_leave_cudnns_backward_out():
    """torch would raise in "auto", which is to go on to the next."""
    q = torch.randn(1, 4, 2, 16)
    torch.use_deterministic_algorithms(True)
    try:
        reasons = [IMPLEMENTATIONS[name].refusal(q) for name in ("sdpa-cudnn", "cudnn")]
        torch.use_deterministic_algorithms(True, warn_only=True)
        warned = IMPLEMENTATIONS["sdpa-cudnn"].refusal(q)
    finally:
        torch.use_deterministic_algorithms(False)
    assert "deterministic" in reasons[0]
    assert "deterministic" not in reasons[1] + warned  # its backward is our own


def test_import_is_silent_and_leaves_xformers_out():
    code = "import sys, ldae_fast.ops; print('xformers.ops' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_module_keeps_timms_names():
    module = Attention(32, heads=2)
    names = {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    assert set(module.state_dict()) == names
    assert module(torch.randn(2, 5, 32)).shape == (2, 5, 32)
    with pytest.raises(ValueError, match="heads must be a divisor of width 32; got 3"):
        Attention(32, heads=3)


def test_xformers_without_a_kernel_for_it_is_refused_in_words():
    """On a CPU it never has one, as a wheel for another torch has none on a GPU."""
    pytest.importorskip("xformers")
    from ldae_fast.kernels.attention import xformers

    assert xformers.load() == ""
    reason = xformers.try_kernel(torch.float32, 64, torch.device("cpu"))
    assert "no kernel for float32 and a head_dim of 64 here (No operator found" in reason
