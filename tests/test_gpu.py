"""What only a CUDA device can show: the same integers, losses and steps as on the CPU."""

import functools
import gc
from argparse import Namespace

import pytest
import torch
from conftest import flags, ldae
from ldae_fast.kernels.mlp_gelu.middle import bias_gelu, bias_gelu_backward
from ldae_fast.kernels.normal import philox, reference
from ldae_fast.kernels.normal.cuda import refusal
from ldae_fast.kernels.quantise_float8 import GRADIENTS, VALUES, largest_and_sums

from ldae_fast import ops
from ldae_fast.cli.arguments import device_of
from ldae_fast.float8 import CAPABILITY, definition, linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
needs_float8 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < CAPABILITY,
    reason="the device has no float8 products",
)


def test_philox_gives_the_same_integers():
    ids = torch.arange(1000) << 25
    assert torch.equal(philox(7, 3, ids, 5), philox(7, 3, ids.cuda(), 5).cpu())


def test_the_definition_compiles_to_the_same_integers():
    ids = torch.arange(100).cuda() << 25
    compiled = torch.compile(reference.philox, fullgraph=True)
    assert torch.equal(compiled(7, 3, ids, 5), reference.philox(7, 3, ids, 5))


def test_normals_agree_to_rounding():
    ids = torch.arange(200)
    close = {"rtol": 0, "atol": 4e-6}
    on_gpu = ops.normal(7, 3, ids.cuda(), 4096).cpu()
    torch.testing.assert_close(on_gpu, ops.normal(7, 3, ids, 4096), **close)


@pytest.mark.parametrize("impl", ["triton", "cuda"])
def test_normals_of_many_samples(impl):
    """CUDA's second and third axis of a grid end at 65,535."""
    built(impl)
    ids = torch.arange(70_000, device="cuda")
    some = slice(69_990, None)
    made = ops.normal(7, 3, ids, 8, impl=impl)[some]
    assert torch.equal(made, ops.normal(7, 3, ids[some], 8, impl=impl))


def trained(image_folder, steps: int, **changes) -> tuple[list[float], torch.Tensor]:
    """(the first losses, how far every weight has moved): without the second, none need move."""
    from test_train import build, curve

    def weights():
        return torch.cat([p.detach().flatten().cpu() for p in engine.model.parameters()])

    torch.compiler.reset()
    engine, loader = build(image_folder, **changes)
    before = weights()
    return curve(engine, loader, steps), weights() - before


def assert_alike(ours: tuple, theirs: tuple, precision: str) -> None:
    """Losses, and the path of the weights: between bfloat16 and emulated float8 it is 4 % off."""
    losses, path = {"float32": (2e-4, 5e-3), "bfloat16": (2e-3, 2e-2), "float8": (2e-3, 3e-2)}[
        precision
    ]
    assert ours[0] == pytest.approx(theirs[0], rel=losses)
    assert (ours[1] - theirs[1]).norm() <= path * theirs[1].norm()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_first_steps_are_the_cpus(image_folder, precision):
    on_cpu = trained(image_folder, 12, optimizer__precision=precision)
    on_gpu = trained(image_folder, 12, device="cuda", optimizer__precision=precision)
    assert_alike(on_gpu, on_cpu, precision)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["cudnn", "triton", "sdpa-cudnn"])
def test_packed_attention_is_exact_enough(impl, dtype, compiled):
    """The kernels as Hopper has them, at the lengths and heads of training and between."""
    from test_attention_kernels import check_error, draws

    def run(q, k, v):
        packed = torch.stack([q, k, v], 2).cuda()
        return attend(packed).cpu()

    torch._dynamo.reset()
    attend = functools.partial(ops.attention_packed, impl=impl)
    attend = torch.compile(attend, fullgraph=True, dynamic=False) if compiled else attend
    shapes = [(2, 256, 4, 64), (3, 197, 2, 48), (2, 50, 3, 64), (4, 16, 2, 32)]
    for shape in shapes[: 2 if impl == "cudnn" else None]:
        small = torch.empty(1, shape[1], 3, *shape[2:], dtype=dtype, device="cuda")
        try:
            ops.attention_packed(small, impl=impl)
        except ValueError as reason:
            if "cannot run here" not in str(reason):
                raise
            pytest.skip(str(reason))
        check_error(run, draws(shape, dtype, 3))


LONG = {"optimizer__precision": "bfloat16", "model__patch": "2", "model__width": "128"}
AS_TRAINED = pytest.mark.parametrize(
    "changes",  # 256 tokens and heads of 64 values in bfloat16 are what our attention is for
    [{}, LONG, LONG | {"speed__recompute": "true"}],
    ids=["float32", "bfloat16", "recomputed"],
)


@AS_TRAINED
@pytest.mark.parametrize("mode", ["off", "blocks", "on", "graph"])
def test_a_step_is_the_same_however_it_is_launched(image_folder, mode, changes):
    eager = trained(image_folder, 6, device="cuda", speed__compile="off", **changes)
    again = trained(image_folder, 6, device="cuda", speed__compile=mode, **changes)
    if mode == "off" and not changes:  # cuDNN's backward, on other GPUs than Hopper, may differ
        assert again[0] == eager[0]
        assert torch.equal(again[1], eager[1])
    else:
        assert_alike(again, eager, changes.get("optimizer__precision", "float32"))


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": "mae"},
        {"model__conditional": "true", "model__classes": "3"},
        pytest.param(LONG | {"optimizer__precision": "float8"}, marks=needs_float8),
    ],
    ids=["masked", "conditional", "float8"],
)
def test_every_kind_of_step_can_be_captured(image_folder, changes):
    """As small batches are where nothing is said."""
    plain = trained(image_folder, 6, device="cuda", speed__compile="blocks", **changes)
    captured = trained(image_folder, 6, device="cuda", speed__compile="graph", **changes)
    assert_alike(captured, plain, changes.get("optimizer__precision", "float32"))


@AS_TRAINED
@pytest.mark.parametrize("mode", ["blocks", "graph"])
def test_a_step_never_waits_for_the_device(image_folder, mode, changes):
    from test_train import build

    from ldae_fast.train.upload import upload

    torch.compiler.reset()
    engine, loader = build(image_folder, device="cuda", speed__compile=mode, **changes)
    batches, results = upload(loader.iterate(0), engine.device), []
    for step in range(3):  # what is compiled or kept at first may wait
        engine.step(next(batches), step, 0.1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results += [engine.step(next(batches), step, 0.1) for step in range(3, 6)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    batches.close()
    assert all(0 < result.loss < 10 for result in results)


@needs_float8
@pytest.mark.parametrize("gradient", [False, True], ids=["values", "gradients"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 37), (131, 67), (512, 1024), (4100, 528)])
def test_quantising_is_the_definition(shape, gradient):
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=g) * torch.randn(shape, generator=g).exp2()).cuda().bfloat16()
    wanted = ops.quantise_float8(x, gradient=gradient, impl="reference")
    compiled = torch.compile(ops.quantise_float8, fullgraph=True, dynamic=False)
    for made in (
        ops.quantise_float8(x, gradient=gradient, impl="triton"),
        compiled(x, gradient=gradient, impl="triton"),
    ):
        for ours, theirs in zip(made, wanted, strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.is_contiguous()
            assert torch.equal(ours.float(), theirs.float())
    x[-1, 0] = torch.nan
    assert not ops.quantise_float8(x, gradient=gradient, impl="triton")[2].isfinite()
    dtype = GRADIENTS if gradient else VALUES
    largest = torch.ops.ldae_triton.float8_largest(x)
    torch.library.opcheck(torch.ops.ldae_triton.quantise_float8, (x, largest, dtype))


@needs_float8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 37), (4100, 528)])
def test_passes_find_the_largest_of_what_they_write(shape, dtype):
    g = torch.Generator().manual_seed(0)
    u, dout = (torch.randn(shape, generator=g).cuda().to(dtype) for _ in range(2))
    bias = torch.randn(shape[1], generator=g).cuda()

    def made(impl):
        return (*bias_gelu(u, bias, "tanh", impl), *bias_gelu_backward(dout, u, bias, "tanh", impl))

    wanted, near = made("reference"), 1e-5 if dtype == torch.float32 else 2e-2
    for found in (made("triton"), torch.compile(made, fullgraph=True, dynamic=False)("triton")):
        for ours, theirs in zip(found, wanted, strict=True):
            sums = shape[0] ** 0.5 if theirs.dim() == 1 else 1.0
            assert torch.allclose(ours, theirs, rtol=near, atol=near * sums)
        hidden, largest, du, _, steepest = found
        assert (largest, steepest) == (hidden.abs().max(), du.abs().max())
    largest, sums = largest_and_sums(u)
    assert largest == u.abs().max()
    assert torch.allclose(sums.double(), u.double().sum(0), rtol=1e-5, atol=1e-3)
    for name in ("float8_largest", "float8_largest_and_sums"):
        torch.library.opcheck(getattr(torch.ops.ldae_triton, name), (u,))
    forward = torch.ops.ldae_triton.bias_gelu_forward_largest
    torch.library.opcheck(forward, (u, bias, True))
    torch.library.opcheck(torch.ops.ldae_triton.bias_gelu_backward_largest, (dout, u, bias, True))


@needs_float8
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(16, 16, 16), (512, 384, 1536)])
def test_float8_products_are_the_definitions(rows, inputs, outputs):
    """Value and gradients against exact products of the same float8 values.

    Hopper's tensor cores add float8 products up in about 14 bits: hence 2^-12 of the terms' sizes.
    """
    g = torch.Generator().manual_seed(0)
    shapes = (rows, inputs), (outputs, inputs), (outputs,), (rows, outputs)
    x, weight, bias, dout = (torch.randn(s, generator=g).bfloat16().cuda() for s in shapes)
    leaves = [v.requires_grad_() for v in (x, weight, bias)]
    out = linear(*leaves)
    dx, dweight, _ = torch.autograd.grad(out, leaves, dout)
    x, weight, bias = (v.detach() for v in leaves)
    for got, a, b, dtype, more in (
        (out, x, weight, VALUES, bias.double()),
        (dx, dout, weight.T, GRADIENTS, 0.0),
        (dweight, dout.T, x.T, GRADIENTS, 0.0),
    ):
        terms = definition(a.abs(), b.abs(), dtype, VALUES)
        error = (got.double() - definition(a, b, dtype, VALUES) - more).abs()
        assert (error <= 2**-8 * got.double().abs() + 2**-12 * terms).all()


@needs_float8
def test_the_first_float8_steps_are_the_emulated_ones(image_folder):
    on_cpu = trained(image_folder, 12, optimizer__precision="float8-emulated")
    on_gpu = trained(image_folder, 12, device="cuda", optimizer__precision="float8")
    assert_alike(on_gpu, on_cpu, "float8")


def test_a_whole_run(image_folder, tmp_path):
    """In bfloat16 and captured, where the device's peak is known."""
    data = ("--data", f"folder:{image_folder}")
    run = ("train", "ldae", *data, "--steps", "20", "--device", "cuda", "--out", tmp_path / "run")
    done = ldae(*run, *flags(optimizer__precision="bfloat16"))
    assert done.returncode == 0, done.stderr
    assert ldae("probe", tmp_path / "run", *data).returncode == 0


def test_a_device_that_stays_idle_is_told(capsys):
    assert device_of(Namespace(device=None)) == "cpu"
    assert f"--device cuda takes the {torch.cuda.get_device_name()}" in capsys.readouterr().err
    assert [device_of(Namespace(device=d)) for d in ("cpu", "cuda")] == ["cpu", "cuda"]
    assert not capsys.readouterr().err


# --- Tensors of more than 2^31 elements: every index into them needs 64 bits ----------------------

LARGE = 2**31
WIDTH, TOKENS, PATCH = 1024, 256, 16


def room(gib: int):
    gc.collect()
    torch.cuda.empty_cache()  # what earlier tests left to torch's allocator is free too
    free = torch.cuda.mem_get_info()[0] >> 30
    if free < gib:
        pytest.skip(f"needs {gib} GiB of free GPU memory, {free} are")


def built(impl: str):
    if impl == "cuda" and (reason := refusal(torch.empty(0, device="cuda"))):
        pytest.skip(reason)


def randn(*shape):
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def huge_images():
    """Images of over 2^31 values, and a basis of 16 components of their patches."""
    values = 3 * PATCH**2
    batch = LARGE // (TOKENS * values) + 5
    images = torch.randint(0, 256, (batch, 256, 256, 3), dtype=torch.uint8, device="cuda")
    return images, torch.linalg.qr(torch.randn(values, values, device="cuda"))[0][:16].contiguous()


def ends_alike(run, batch: int, *arguments):
    """The last samples give the same bits among all others as alone."""
    some = slice(batch - 3, batch)
    for whole, alone in zip(run(*arguments), run(*(a[some] for a in arguments)), strict=True):
        assert whole.numel() > LARGE
        assert torch.equal(whole[some], alone)


def test_adaln_of_a_huge_batch():
    room(50)
    batch = LARGE // (TOKENS * WIDTH) + 5
    vectors = randn(3, batch, WIDTH)

    def run(x, y, gate, shift, scale):
        x, y = (v.detach().requires_grad_() for v in (x, y))
        h, out = ops.gate_residual_layernorm_modulate(x, y, gate, shift, scale, impl="triton")
        return h.detach(), out.detach(), *torch.autograd.grad(out, (x, y), out.detach())

    ends_alike(run, batch, *randn(2, batch, TOKENS, WIDTH), *vectors)


def test_gelu_of_a_huge_batch():
    room(30)
    rows, width = LARGE // 4096 + 200, 4096
    bias = randn(width)
    u, dout = randn(2, rows, width)
    some = slice(rows - 128, rows)
    whole = torch.ops.ldae_triton.bias_gelu_forward(u, bias, False)
    assert torch.equal(whole[some], torch.ops.ldae_triton.bias_gelu_forward(u[some], bias, False))
    du, _ = torch.ops.ldae_triton.bias_gelu_backward(dout, u, bias, False)
    alone, _ = torch.ops.ldae_triton.bias_gelu_backward(dout[some], u[some], bias, False)
    assert torch.equal(du[some], alone)


def test_attention_of_a_huge_batch():
    room(40)
    batch = LARGE // (TOKENS * WIDTH) + 5

    def run(qkv):
        qkv = qkv.detach().requires_grad_()
        out = ops.attention_packed(qkv, impl="triton")
        return out.detach(), *torch.autograd.grad(out, qkv, out.detach())

    ends_alike(run, batch, randn(batch, TOKENS, 3, 16, 64))


@pytest.mark.parametrize("impl", ["triton", "cuda"])
def test_noise_of_a_huge_batch(impl):
    built(impl)
    room(30)
    images, basis = huge_images()
    batch = len(images)
    given = {"view": ops.ImageView(PATCH), "outputs": ("noisy_patches",), "dtype": torch.bfloat16}

    def run(images, gamma, ids):
        made = ops.patch_pca_noise(
            images, basis, basis[0], torch.ones(16, device="cuda"), gamma, gamma, ids, seed=1,
            step=2, impl=impl, **given,
        )  # fmt: skip
        return (made["noisy_patches"],)

    ids = torch.arange(batch, device="cuda")
    ends_alike(run, batch, images, torch.rand(batch, device="cuda"), ids)


def test_loss_of_a_huge_batch():
    room(30)
    images, basis = huge_images()
    batch, values = len(images), basis.shape[1]

    def run(pred, images, level):
        upstream = torch.full_like(level, 1 / 7)
        return ops.denoise_loss_and_gradient(
            pred, images, basis, level, upstream, view=ops.ImageView(PATCH), impl="triton"
        )[1:]

    ends_alike(run, batch, randn(batch, TOKENS, values), images, torch.rand(batch, device="cuda"))


@pytest.mark.parametrize("impl", ["triton", "cuda"])
def test_normals_of_a_huge_batch(impl):
    built(impl)
    room(20)
    ids = torch.arange(LARGE // 2**20 + 5, device="cuda")
    ends_alike(lambda ids: (ops.normal(1, 2, ids, 2**20, impl=impl),), len(ids), ids)


def test_adamw_of_a_huge_tensor():
    room(60)
    size, some = LARGE + 5000, slice(LARGE - 1000, None)
    five = [torch.rand(size, device="cuda") for _ in range(5)]
    alone = [t[some].clone() for t in five]
    settings = {"step": 3, "lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1,
                "ema_decay": 0.9, "impl": "triton"}  # fmt: skip
    for tensors in (five, alone):
        scale = torch.ones((), device="cuda")
        ops.adamw_ema(*([t] for t in tensors), grad_scale=scale, **settings)
    for whole, part in zip(five, alone):
        assert torch.equal(whole[some], part)
