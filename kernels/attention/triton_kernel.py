"""Our own attention for short sequences: T <= 256, head_dim 16 to 128.

A program holds every key of its head on the chip, so the softmax of a query row is one step without
running maxima. Scores are kept in units of log2: the scale and log2(e) are folded into one factor.
The backward recomputes the weights from the saved log2 of their sum. No program adds to another's
result, so repeats are equal bit for bit.
"""

import torch
from torch import Tensor

from .. import triton_launch
from ..capability import capability
from ..implementation import require_first_order
from ..triton_launch import MISSING, launch
from .sdpa import HALF, dense_rows

LONGEST = 256
WIDEST = 64  # columns of a head whose dq one program can hold for 256 queries
STAGES = {"forward": 3, "backward": 2}  # blocks under way at once, of heads up to WIDEST
LOG2E = 1.4426950408889634


def refusal(q: Tensor) -> str:
    reason = triton_launch.refusal(q)
    if reason:
        return reason
    if q.shape[1] > LONGEST:
        return f"it takes at most {LONGEST} tokens, q has {q.shape[1]}"
    if not 16 <= q.shape[3] <= 128 or q.shape[3] % 8:
        return f"it takes a head_dim of 16 to 128, a multiple of 8; q has {q.shape[3]}"
    if q.device.type == "cuda" and q.dtype not in HALF:
        return f"it takes bfloat16 or float16, q is {q.dtype}"
    if q.device.type == "cuda" and capability(q.device.index) < 80:
        return f"it needs compute capability 8.0, {q.device} is older"
    return ""


if not MISSING:
    import triton
    import triton.language as tl

    @triton.jit
    def read(base, rows, row_stride, columns, tokens, HEAD: tl.constexpr, FULL: tl.constexpr):
        """Rows of (T, head_dim), zeros beyond either end. FULL: there is nothing beyond."""
        at = base + rows[:, None] * row_stride + columns[None, :]
        if FULL:
            result = tl.load(at)
        else:
            inside = (rows[:, None] < tokens) & (columns[None, :] < HEAD)
            result = tl.load(at, inside, other=0.0)
        return result

    @triton.jit
    def write(
        base, value, rows, row_stride, columns, tokens, HEAD: tl.constexpr, FULL: tl.constexpr
    ):
        at = base + rows[:, None] * row_stride + columns[None, :]
        value = value.to(base.dtype.element_ty)
        if FULL:
            tl.store(at, value)
        else:
            tl.store(at, value, (rows[:, None] < tokens) & (columns[None, :] < HEAD))

    @triton.jit
    def weigh(
        queries, up, key, value, sums, mean, keys, tokens, slope,
        FULL: tl.constexpr, WHOLE: tl.constexpr,
    ):  # fmt: skip
        """(weights, gradient of the scores in key's dtype, both (rows, KEYS); mean (rows,)).

        mean: of the weights' gradients, for each row, over all keys. WHOLE: these are all.
        """
        scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * slope
        weights = tl.exp2(scores - sums[:, None])
        if not FULL:
            weights = tl.where(keys[None, :] < tokens, weights, 0.0)
        gradient = tl.dot(up, tl.trans(value), input_precision="ieee")
        if WHOLE:  # their own sum cancels to the last digit
            mean = tl.sum(weights * gradient, 1)
        return weights, (weights * (gradient - mean[:, None])).to(key.dtype), mean

    @triton.jit
    def attention_forward_kernel(
        q, k, v, out, lse, q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head,
        tokens, heads, slope,
        HEAD: tl.constexpr, COLUMNS: tl.constexpr, KEYS: tl.constexpr, QUERIES: tl.constexpr,
        FULL: tl.constexpr,
    ):  # fmt: skip
        """One head, QUERIES rows at a time. slope: log2(e) / sqrt(head_dim)."""
        slope = tl.cast(slope, tl.float32)  # torch.compile hands a float over in float64
        batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
        keys, columns = tl.arange(0, KEYS), tl.arange(0, COLUMNS)
        q_, k_ = q + batch * q_batch + head * q_head, k + batch * k_batch + head * k_head
        key = read(k_, keys, k_row, columns, tokens, HEAD, FULL)
        value = read(v + batch * v_batch + head * v_head, keys, v_row, columns, tokens, HEAD, FULL)
        out_ = out + batch * tokens * heads * HEAD + head * HEAD
        line = lse + tl.program_id(0).to(tl.int64) * tokens
        for start in range(0, tokens, QUERIES):
            rows = start + tl.arange(0, QUERIES)
            queries = read(q_, rows, q_row, columns, tokens, HEAD, FULL)
            scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * slope
            if not FULL:
                scores = tl.where(keys[None, :] < tokens, scores, float("-inf"))
            most = tl.max(scores, 1)
            weights = tl.exp2(scores - most[:, None])
            total = tl.sum(weights, 1)
            tl.store(line + rows, most + tl.log2(total), rows < tokens)
            summed = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
            summed /= total[:, None]
            write(out_, summed, rows, heads * HEAD, columns, tokens, HEAD, FULL)

    @triton.jit
    def attention_queries_kernel(
        q, k, v, out, dout, lse, delta, dqkv, q_batch, q_row, q_head, k_batch, k_row, k_head,
        v_batch, v_row, v_head, tokens, heads, slope, scale,
        HEAD: tl.constexpr, COLUMNS: tl.constexpr, KEYS: tl.constexpr, QUERIES: tl.constexpr,
        FULL: tl.constexpr, WHOLE: tl.constexpr,
    ):  # fmt: skip
        """dq of QUERIES rows of one head, and delta, the sum over keys of weight x gradient."""
        slope, scale = tl.cast(slope, tl.float32), tl.cast(scale, tl.float32)
        batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
        rows = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
        columns = tl.arange(0, COLUMNS)
        q_ = q + batch * q_batch + head * q_head
        k_, v_ = k + batch * k_batch + head * k_head, v + batch * v_batch + head * v_head
        offset = batch * tokens * heads * HEAD
        stride = heads * HEAD
        queries = read(q_, rows, q_row, columns, tokens, HEAD, FULL)
        up = read(dout + offset + head * HEAD, rows, stride, columns, tokens, HEAD, FULL)
        result = read(out + offset + head * HEAD, rows, stride, columns, tokens, HEAD, FULL)
        mean = tl.sum(up.to(tl.float32) * result.to(tl.float32), 1)  # equal to the sum over keys
        line = tl.program_id(0).to(tl.int64) * tokens + rows
        sums = tl.load(lse + line, rows < tokens, other=float("inf"))
        dq = tl.zeros((QUERIES, COLUMNS), tl.float32)
        for start in range(0, tokens, KEYS):
            keys = start + tl.arange(0, KEYS)
            key = read(k_, keys, k_row, columns, tokens, HEAD, FULL)
            value = read(v_, keys, v_row, columns, tokens, HEAD, FULL)
            _, gradient, mean = weigh(
                queries, up, key, value, sums, mean, keys, tokens, slope, FULL, WHOLE
            )
            dq += tl.dot(gradient, key, input_precision="ieee")
        tl.store(delta + line, mean, rows < tokens)
        base = dqkv + 3 * offset + head * HEAD
        write(base, dq * scale, rows, 3 * stride, columns, tokens, HEAD, FULL)

    @triton.jit
    def attention_keys_kernel(
        q, k, v, out, dout, lse, delta, dqkv, q_batch, q_row, q_head, k_batch, k_row, k_head,
        v_batch, v_row, v_head, tokens, heads, slope, scale,
        HEAD: tl.constexpr, COLUMNS: tl.constexpr, KEYS: tl.constexpr, QUERIES: tl.constexpr,
        FULL: tl.constexpr,
    ):  # fmt: skip
        """dk and dv of KEYS rows of one head, over all queries; after the queries' kernel."""
        slope, scale = tl.cast(slope, tl.float32), tl.cast(scale, tl.float32)
        batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
        keys = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
        columns = tl.arange(0, COLUMNS)
        key = read(k + batch * k_batch + head * k_head, keys, k_row, columns, tokens, HEAD, FULL)
        value = read(v + batch * v_batch + head * v_head, keys, v_row, columns, tokens, HEAD, FULL)
        q_ = q + batch * q_batch + head * q_head
        offset = batch * tokens * heads * HEAD
        dk = tl.zeros((KEYS, COLUMNS), tl.float32)
        dv = tl.zeros((KEYS, COLUMNS), tl.float32)
        for start in range(0, tokens, QUERIES):
            rows = start + tl.arange(0, QUERIES)
            queries = read(q_, rows, q_row, columns, tokens, HEAD, FULL)
            up = read(dout + offset + head * HEAD, rows, heads * HEAD, columns, tokens, HEAD, FULL)
            line = tl.program_id(0).to(tl.int64) * tokens + rows
            sums = tl.load(lse + line, rows < tokens, other=float("inf"))
            means = tl.load(delta + line, rows < tokens, other=0.0)
            weights = tl.exp2(
                tl.dot(key, tl.trans(queries), input_precision="ieee") * slope - sums[None, :]
            )
            if not FULL:
                weights = tl.where(keys[:, None] < tokens, weights, 0.0)  # (KEYS, QUERIES)
            dv += tl.dot(weights.to(up.dtype), up, input_precision="ieee")
            gradient = tl.dot(value, tl.trans(up), input_precision="ieee")
            gradient = (weights * (gradient - means[None, :])).to(queries.dtype)
            dk += tl.dot(gradient, queries, input_precision="ieee")
        base = dqkv + 3 * offset + head * HEAD
        stride = 3 * heads * HEAD
        write(base + heads * HEAD, dk * scale, keys, stride, columns, tokens, HEAD, FULL)
        write(base + 2 * heads * HEAD, dv, keys, stride, columns, tokens, HEAD, FULL)

    @triton.jit
    def attention_backward_kernel(
        q, k, v, out, dout, lse, dqkv, q_batch, q_row, q_head, k_batch, k_row, k_head,
        v_batch, v_row, v_head, tokens, heads, slope, scale,
        HEAD: tl.constexpr, COLUMNS: tl.constexpr, KEYS: tl.constexpr, QUERIES: tl.constexpr,
        FULL: tl.constexpr, WHOLE: tl.constexpr,
    ):  # fmt: skip
        """dq, dk and dv of one head: dq of all its queries stays in registers throughout.

        The weights (QUERIES, KEYS) of some keys are made once and serve all three.
        """
        slope, scale = tl.cast(slope, tl.float32), tl.cast(scale, tl.float32)
        batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
        rows, columns = tl.arange(0, QUERIES), tl.arange(0, COLUMNS)
        offset = batch * tokens * heads * HEAD + head * HEAD
        stride = heads * HEAD
        base = dqkv + 3 * batch * tokens * stride + head * HEAD
        q_ = q + batch * q_batch + head * q_head
        k_, v_ = k + batch * k_batch + head * k_head, v + batch * v_batch + head * v_head
        queries = read(q_, rows, q_row, columns, tokens, HEAD, FULL)
        up = read(dout + offset, rows, stride, columns, tokens, HEAD, FULL)
        result = read(out + offset, rows, stride, columns, tokens, HEAD, FULL)
        mean = tl.sum(up.to(tl.float32) * result.to(tl.float32), 1)  # equal to the sum over keys
        line = lse + tl.program_id(0).to(tl.int64) * tokens
        sums = tl.load(line + rows, rows < tokens, other=float("inf"))
        dq = tl.zeros((QUERIES, COLUMNS), tl.float32)
        for start in range(0, tokens, KEYS):
            keys = start + tl.arange(0, KEYS)
            key = read(k_, keys, k_row, columns, tokens, HEAD, FULL)
            value = read(v_, keys, v_row, columns, tokens, HEAD, FULL)
            weights, gradient, mean = weigh(
                queries, up, key, value, sums, mean, keys, tokens, slope, FULL, WHOLE
            )
            weights = weights.to(key.dtype)
            dq = tl.dot(gradient, key, dq, input_precision="ieee")
            dv = tl.dot(tl.trans(weights), up, input_precision="ieee")
            write(base + 2 * stride, dv, keys, 3 * stride, columns, tokens, HEAD, FULL)
            dk = tl.dot(tl.trans(gradient), queries, input_precision="ieee")
            write(base + stride, dk * scale, keys, 3 * stride, columns, tokens, HEAD, FULL)
        write(base, dq * scale, rows, 3 * stride, columns, tokens, HEAD, FULL)

    def near(x: Tensor) -> Tensor:
        """x, copied where a sample's ends lie too far apart for 32 bits, by which rows are found.

        64 bits would take registers that the kernels have not got.
        """
        reach = sum((n - 1) * step for n, step in zip(x.shape[1:], x.stride()[1:]))
        return x if reach < 2**31 else x.contiguous()

    def split(q: Tensor, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, from one packed tensor where k and v are None."""
        return tuple(map(near, (q, k, v) if k is not None else q.unbind(2)))

    def settings(q: Tensor, kernel: str) -> dict:
        """Block sizes and warps: what compiles for Hopper without spills at T = 256."""
        tokens, head = q.shape[1], q.shape[3]
        columns = triton.next_power_of_2(head)
        every = max(16, triton.next_power_of_2(tokens))
        narrow = columns <= WIDEST
        keys, queries = 64, 64
        if kernel == "forward":  # rows of whole keys fill the registers
            keys, queries = every, 64 if narrow else 128
        elif kernel == "backward":  # dq of all queries takes a quarter of the registers
            queries = every
        return {
            "HEAD": head,
            "COLUMNS": columns,
            "KEYS": min(every, keys),
            "QUERIES": min(every, queries),
            "FULL": tokens == every and head == columns,
            "num_warps": 4 if every < 64 or (kernel == "forward" and narrow) else 8,
            "num_stages": STAGES.get(kernel, 1) if narrow else 1,
        }

    def numbers(q: Tensor, k: Tensor, v: Tensor) -> tuple:
        """Strides, T, heads and the slope, as every kernel takes them."""
        strides = [x.stride(i) for x in (q, k, v) for i in (0, 1, 2)]
        return *strides, q.shape[1], q.shape[2], q.shape[3] ** -0.5 * LOG2E

    def launch_forward(q: Tensor, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """(out (B, T, heads, head_dim), log2 of the weights' sum (B, heads, T))."""
        q, k, v = split(q, k, v)
        batch, tokens, heads, _ = q.shape
        out = q.new_empty(q.shape)
        lse = q.new_empty((batch, heads, tokens), dtype=torch.float32)
        how = settings(q, "forward")
        launch(
            attention_forward_kernel, (batch * heads,), q, k, v, out, lse, *numbers(q, k, v), **how
        )
        return out, lse

    def launch_backward(
        dout: Tensor,
        out: Tensor,
        lse: Tensor,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
    ) -> Tensor:
        """dq, dk, dv as one packed (B, T, 3, heads, head_dim)."""
        q, k, v = split(q, k, v)
        batch, tokens, heads, head = q.shape
        dqkv = q.new_empty((batch, tokens, 3, heads, head))
        dout = dout.contiguous()
        how = settings(q, "backward")
        if how["COLUMNS"] <= WIDEST:
            launch(attention_backward_kernel, (batch * heads,), q, k, v, out, dout, lse, dqkv,
                   *numbers(q, k, v), head**-0.5, WHOLE=tokens <= how["KEYS"], **how)  # fmt: skip
            return dqkv
        delta = torch.empty_like(lse)
        tensors = (q, k, v, out, dout, lse, delta, dqkv)
        for kernel, name, block in (
            (attention_queries_kernel, "queries", "QUERIES"),
            (attention_keys_kernel, "keys", "KEYS"),
        ):
            how = settings(q, name)
            if name == "queries":
                how["WHOLE"] = tokens <= how["KEYS"]
            grid = (batch * heads, triton.cdiv(tokens, how[block]))
            launch(kernel, grid, *tensors, *numbers(q, k, v), head**-0.5, **how)
        return dqkv

    operator = torch.library.triton_op(
        "ldae_triton::attention_forward", launch_forward, mutates_args=()
    )
    torch.library.triton_op("ldae_triton::attention_backward", launch_backward, mutates_args=())

    def keep(ctx, inputs, output) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output, *inputs)

    def differentiate(ctx, dout, dlse):
        require_first_order("attention")
        out, lse, q, k, v = ctx.saved_tensors
        dqkv = torch.ops.ldae_triton.attention_backward(dout, out, lse, q, k, v)
        return dqkv.unbind(2) if k is not None else (dqkv, None, None)

    def differentiate_by_ours(forward) -> None:
        """Gives a registered forward pass, with outputs as launch_forward's, our backward."""
        forward.register_autograd(differentiate, setup_context=keep)

    differentiate_by_ours(operator)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: (B, T, heads, head_dim). Returns the same shape and dtype."""
    return torch.ops.ldae_triton.attention_forward(*map(dense_rows, (q, k, v)))[0]


def attention_packed(qkv: Tensor) -> Tensor:
    """qkv: (B, T, 3, heads, head_dim). Returns (B, T, heads, head_dim)."""
    return torch.ops.ldae_triton.attention_forward(dense_rows(qkv), None, None)[0]
