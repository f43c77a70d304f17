"""Random calls of every op: valid ones agree with the definition, invalid ones are refused by name.

500 valid and 200 invalid calls an op in the suite; `make fuzz` runs 10,000 and 2,000.
"""

import importlib
import os
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ldae_fast.kernels.implementation import Kind

from ldae_fast import ops

VALID = int(os.environ.get("LDAE_FUZZ_VALID", 500))
INVALID = int(os.environ.get("LDAE_FUZZ_INVALID", 200))
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None,
         "derandomize": True}  # fmt: skip
FLOATS = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SIZE = st.integers(0, 9)
WIDTH = st.integers(1, 67)
VIEW3 = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def tensor(draw, *shape, dtype=torch.float32, sizes=(1, 1, 1, 40)):
    """Normals of that shape times a size, sometimes a slice or every other value of more."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    layout = draw(st.sampled_from(["plain", "plain", "sliced", "strided"]))
    size = draw(st.sampled_from(sizes))
    if layout == "plain" or not shape:
        return (size * torch.randn(shape, generator=g)).to(dtype)
    step = 1 if layout == "sliced" else 2
    wide = (size * torch.randn(*shape[:-1], step * shape[-1] + 3, generator=g)).to(dtype)
    return wide[..., 1 : 1 + step * shape[-1] : step]


def pictures(draw, batch):
    """(images, view, keywords): uint8 or float, with or without a flip and a crop."""
    patch, channels = draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from([1, 3]))
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    keywords = {}
    if draw(st.booleans()):
        keywords["flip"] = torch.tensor([draw(st.booleans()) for _ in range(batch)]).bool()
    height, width = rows * patch, columns * patch
    if draw(st.booleans()):
        size = height
        height, width = height + draw(st.integers(0, 5)), size + draw(st.integers(0, 5))
        corners = [
            (draw(st.integers(0, height - size)), draw(st.integers(0, width - size)))
            for _ in range(batch)
        ]
        keywords |= {"crop": torch.tensor(corners).long().reshape(batch, 2), "size": size}
        columns = rows
    view = ops.ImageView(patch, *(v[:channels] for v in VIEW3))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    images = torch.randint(0, 256, (batch, height, width, channels), generator=g)
    if draw(st.booleans()):
        return images.permute(0, 3, 1, 2).float() / 255, view, keywords, rows * columns
    return images.to(torch.uint8), view, keywords, rows * columns


def orthonormal(d, values, seed):
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(values, values, generator=g, dtype=torch.float64))[0]
    return q[:d].float().contiguous()


def identifiers(draw, batch):
    ids = st.integers(-(2**63), 2**63 - 1)
    return torch.tensor([draw(ids) for _ in range(batch)], dtype=torch.int64)


def normal(draw):
    seed, step = draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 2**32 - 1))
    call = [seed, step, identifiers(draw, draw(SIZE)), draw(st.integers(0, 70))]
    return call, {"dtype": draw(FLOATS)}


def patch_pca_noise(draw):
    batch = draw(st.integers(0, 5))
    images, view, keywords, _ = pictures(draw, batch)
    values = view.patch**2 * len(view.mean)
    d = draw(st.integers(1, values))
    names = ("clean_latents", "noisy_latents", "noisy_patches", "noise")
    outputs = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
    scale = tensor(draw, d).abs() + 0.1
    gamma, sigma = tensor(draw, batch).abs(), tensor(draw, batch).abs()
    call = [images, orthonormal(d, values, draw(st.integers(0, 99))), tensor(draw, values), scale,
            gamma, sigma, identifiers(draw, batch)]  # fmt: skip
    keywords |= {"seed": draw(st.integers(0, 2**64 - 1)), "step": draw(st.integers(0, 2**32 - 1))}
    return call, keywords | {"view": view, "outputs": tuple(outputs), "dtype": draw(FLOATS)}


def denoise_loss(draw):
    batch = draw(st.integers(0, 5))
    images, view, keywords, tokens = pictures(draw, batch)
    values = view.patch**2 * len(view.mean)
    full = draw(st.booleans())
    d = values if full else draw(st.integers(1, values))
    weights = tensor(draw, values).abs() if full else (draw(st.floats(0, 2)), 0.1)
    pred = tensor(draw, batch, tokens, values, dtype=draw(FLOATS))
    basis = orthonormal(d, values, draw(st.integers(0, 99)))
    call = [pred, images, basis, tensor(draw, batch).abs()]
    return call, keywords | {"view": view, "weights": weights}


def layernorm_modulate(draw):
    batch, tokens, width, dtype = draw(SIZE), draw(SIZE), draw(WIDTH), draw(FLOATS)
    x = tensor(draw, batch, tokens, width, dtype=dtype)
    return [x, *(tensor(draw, batch, width, dtype=draw(FLOATS)) for _ in range(2))], {}


def gate_residual_layernorm_modulate(draw):
    batch, tokens, width, dtype = draw(SIZE), draw(SIZE), draw(WIDTH), draw(FLOATS)
    x, y = (tensor(draw, batch, tokens, width, dtype=dtype) for _ in range(2))
    return [x, y, *(tensor(draw, batch, width, dtype=draw(FLOATS)) for _ in range(3))], {}


def attention(draw):
    shape = draw(SIZE), draw(st.integers(1, 40)), draw(st.integers(1, 4)), draw(st.integers(1, 40))
    dtype = draw(FLOATS)
    # No large scores: their rounding, which the exponential makes large, is the luck of one draw.
    return [tensor(draw, *shape, dtype=dtype, sizes=(1,)) for _ in range(3)], {}


def mlp_gelu(draw):
    rows, width, hidden, out = draw(SIZE), draw(WIDTH), draw(WIDTH), draw(WIDTH)
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    shapes = (draw(SIZE), rows, width), (hidden, width), (hidden,), (out, hidden), (out,)
    call = [tensor(draw, *shape, dtype=dtype) for shape in shapes]
    return call, {"approximate": draw(st.sampled_from(["none", "tanh"]))}


def adamw_ema(draw):
    shapes = draw(st.lists(st.lists(st.integers(0, 7), min_size=0, max_size=3), max_size=5))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    lists = [[torch.randn(s, generator=g) for s in shapes] for _ in range(5)]
    lists[3] = [v.abs() for v in lists[3]]
    options = {"step": draw(st.integers(1, 10**6)), "lr": draw(st.floats(0, 1)),
               "betas": (draw(st.floats(0, 0.99)), draw(st.floats(0, 0.999))), "eps": 1e-8,
               "weight_decay": draw(st.floats(0, 1)), "ema_decay": draw(st.floats(0, 1)),
               "grad_scale": torch.tensor(draw(st.floats(0, 2)))}  # fmt: skip
    return lists, options


OPS = (normal, patch_pca_noise, denoise_loss, layernorm_modulate, gate_residual_layernorm_modulate,
       attention, mlp_gelu, adamw_ema)  # fmt: skip


def wide(value):
    if isinstance(value, list):
        return [wide(v) for v in value]
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.double()
    return torch.float64 if isinstance(value, torch.dtype) else value


def results(op, call, options, impl, wanted=()):
    """What the call gives or writes, then the gradients of the wanted arguments."""
    if op == "adamw_ema":
        lists = [[t.clone() for t in one] for one in call]
        ops.adamw_ema(*lists, **options, impl=impl)
        return [t for one in lists for t in one]
    call = [a.detach().requires_grad_() if i in wanted else a for i, a in enumerate(call)]
    out = getattr(ops, op)(*call, **options, impl=impl)
    out = [out] if isinstance(out, torch.Tensor) else out
    out = list(out.values() if isinstance(out, dict) else out)
    if not wanted:
        return out
    g = torch.Generator().manual_seed(7)
    upstream = [torch.randn(o.shape, generator=g).to(o) for o in out]
    return out + list(torch.autograd.grad(out, [call[i] for i in wanted], upstream))


def differentiable(op):
    cases = importlib.import_module(f"ldae_fast.kernels.{op}.cases")
    return getattr(cases, "DIFFERENTIABLE", ())


def own_ways(op, call, options):
    """Implementations of ours that take the call; Triton's interpreter is too slow for so many."""
    table = importlib.import_module(f"ldae_fast.kernels.{op}").IMPLEMENTATIONS
    dtype = torch.float32 if op == "adamw_ema" else options.get("dtype") or call[0].dtype
    kind = Kind(torch.device("cpu"), dtype)
    return [name for name in ("cpp", "matmul") if name in table and not table[name].refusal(kind)]


@pytest.mark.parametrize("strategy", OPS, ids=lambda f: f.__name__)
def test_valid_calls_agree_with_the_definition(strategy):
    op = strategy.__name__

    @settings(max_examples=VALID, **QUIET)
    @given(st.data())
    def check(data):
        call, options = strategy(data.draw)
        impl = data.draw(st.sampled_from(["auto", *own_ways(op, call, options)]))
        # "auto" may be a kernel in Triton's interpreter, of which both passes take too long.
        wanted = differentiable(op) if impl != "auto" else ()
        wide_options = {k: wide(v) for k, v in options.items()}
        truth = results(op, wide(call), wide_options, "reference", wanted)
        torchs = results(op, call, options, "reference", wanted)
        made = results(op, call, options, impl, wanted)
        values = len(made) - len(wanted)
        for i, (a, b, t) in enumerate(zip(made, torchs, truth, strict=True)):
            assert a.shape == t.shape
            if not t.numel():
                continue
            scale = max(1.0, float(t.detach().abs().max()))
            ours, theirs = (float((v.double() - t).detach().abs().max()) for v in (a, b))
            # One draw, one maximum: luck is worth some units in the last place. A gradient may be
            # the difference of larger numbers, of far larger ones where a row has one or two.
            luck = 4 * torch.finfo(a.dtype).eps
            if i >= values:
                narrow = op.endswith("modulate") and a.shape[-1] < 3
                luck = 4 * luck + 10 ** (3 + 3 * narrow) * torch.finfo(torch.float32).eps
            assert ours <= 2 * max(theirs, luck * scale), (i, ours, theirs)

    check()


def misshapen(draw, value, kinds=("more", "fewer", "wider")):
    """The tensor with two dimensions more, one fewer, or a last dimension that is longer by one."""
    kind = draw(st.sampled_from(kinds))
    if kind == "more" or value.dim() == 0:
        return value[None, None]
    if kind == "fewer":
        return value.new_zeros(value.shape[1:])
    return value.new_zeros((*value.shape[:-1], value.shape[-1] + 1))


FREE = {  # what an argument may change without being wrong is left out
    ("patch_pca_noise", "images"): ("more", "fewer"),
    ("denoise_loss", "images"): ("more", "fewer"),
    ("normal", "sample_ids"): ("more", "fewer"),
    ("mlp_gelu", "x"): ("wider",),
}
NAMES = {
    "normal": ("seed", "step", "sample_ids", "elements"),
    "patch_pca_noise": ("images", "basis", "center", "scale", "gamma", "sigma", "sample_ids"),
    "denoise_loss": ("pred", "images", "basis", "level_weight"),
    "layernorm_modulate": ("x", "shift", "scale"),
    "gate_residual_layernorm_modulate": ("x", "y", "gate", "shift", "scale"),
    "attention": ("q", "k", "v"),
    "mlp_gelu": ("x", "weight1", "bias1", "weight2", "bias2"),
    "adamw_ema": ("params", "grads", "exp_avgs", "exp_avg_sqs", "emas"),
}
WORDS = {  # an argument of one size speaks for those that must agree with it
    "images": "images|view|patch|crop|size|flip|pred|sample_ids|gamma|basis",
    "x": "x|y|shift|scale|gate|weight1",
    "q": "q|k|v",
    "y": "y|x",
    "weight1": "weight1|weight2|bias1|x",
    "basis": "basis|scale|weights",
    "params": "params|grads",
}


@pytest.mark.parametrize("strategy", OPS, ids=lambda f: f.__name__)
def test_invalid_calls_name_the_argument(strategy):
    op = strategy.__name__
    names = NAMES[op]

    @settings(max_examples=INVALID, **QUIET)
    @given(st.data())
    def check(data):
        call, options = strategy(data.draw)
        index = data.draw(st.integers(0, len(names) - 1))
        name, value = names[index], call[index]
        if op == "adamw_ema":
            call[index] = [*value, torch.zeros(3)]
        elif isinstance(value, torch.Tensor):
            kinds = FREE.get((op, name), ("more", "fewer", "wider"))
            call[index] = misshapen(data.draw, value, kinds)
        else:
            call[index] = -1 if name == "elements" else data.draw(st.sampled_from([-1, 2**64]))
        with pytest.raises((ValueError, TypeError)) as refused:
            getattr(ops, op)(*call, **options)
        words = WORDS.get(name, name)
        assert re.search(rf"{op}: .*\b({words})\b", str(refused.value)), (name, refused.value)

    check()


@pytest.mark.parametrize(
    ("op", "change", "word"),
    [
        ("normal", {"dtype": torch.int32}, "dtype"),
        ("patch_pca_noise", {"outputs": ("nothing",)}, "outputs"),
        ("patch_pca_noise", {"outputs": ()}, "outputs"),
        ("patch_pca_noise", {"dtype": torch.int64}, "dtype"),
        ("patch_pca_noise", {"flip": torch.zeros(77, dtype=torch.bool)}, "flip"),
        ("patch_pca_noise", {"view": ops.ImageView(1000, *VIEW3)}, "view"),
        ("denoise_loss", {"weights": torch.ones(1000)}, "weights"),
        ("layernorm_modulate", {"impl": "fast"}, "impl"),
        ("attention", {"impl": "flash"}, "impl"),
        ("mlp_gelu", {"approximate": "erf"}, "approximate"),
        ("adamw_ema", {"step": 0}, "step"),
    ],
)
def test_bad_options_are_named(op, change, word):
    @settings(max_examples=20, **QUIET)
    @given(st.data())
    def check(data):
        call, options = globals()[op](data.draw)
        with pytest.raises((ValueError, TypeError), match=rf"{op}: .*{word}"):
            getattr(ops, op)(*call, **options | change)

    check()
