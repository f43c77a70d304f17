"""What inductor makes of the network for a GPU, counted without one: kernels, bytes, copies.

python bench/graph.py [--size half-L] [--image-size 256] [--batch 8] [--kernels]

The forward and backward passes are traced with fake tensors and lowered, fused and scheduled by
inductor as for a GPU of compute capability 9.0; nothing is compiled or run. Rows: the ops'
definitions, the plain model of bench/plain.py with SDPA's flash attention, this package's Triton
kernels, and these with the blocks' products in float8. Columns, for one forward and backward pass:

    products   matrix products of a library
    attention  kernels of attention
    ours       this package's other Triton kernels
    fused      kernels that inductor writes
    copies     those of them that only move or cast, and as much as an activation or more
    GB         what all of these read and write, by inductor's own count
    E a block  the same without the products, in (B, T, D) tensors of bfloat16, for each block
"""

import argparse
import copy
import importlib
import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest import mock

import plain
import torch
import triton
from ldae_fast.kernels.implementation import Implementation, never
from torch import Tensor, nn
from torch._dynamo import device_interface
from torch._guards import detect_fake_mode
from torch._inductor import compile_fx, ir
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import BaseSchedulerNode, NopKernelSchedulerNode, SchedulerNode
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from triton.backends.compiler import GPUTarget

from ldae_fast import float8
from ldae_fast.config import Config
from ldae_fast.model import LatentDAE
from ldae_fast.recipes import build_config

OPS = ["attention", "layernorm_modulate", "gate_residual_layernorm_modulate", "mlp_gelu",
       "quantise_float8"]  # fmt: skip
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm")
# Of inductor's operations, those that compute nothing but a place.
PLACES = {"get_index", "index_expr", "constant", "masked", "where", "eq", "ge", "lt", "and_"}
MOVES = {"load", "store", "to_dtype", "output", *PLACES}


@dataclass(frozen=True)
class Properties:
    """An H100's, as far as inductor asks for them."""

    name: str = "H100"
    major: int = 9
    minor: int = 0
    multi_processor_count: int = 132
    regs_per_multiprocessor: int = 65536
    max_threads_per_multi_processor: int = 2048
    max_threads_per_block: int = 1024
    shared_memory_per_block_optin: int = 232448
    warp_size: int = 32


class Hopper(device_interface.CudaInterface):
    """The device that inductor believes to be there."""

    class Worker:
        current_device = staticmethod(lambda: 0)
        get_device_properties = staticmethod(lambda device=None: Properties())

    is_available = staticmethod(lambda: True)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    get_device_properties = Worker.get_device_properties
    get_compute_capability = staticmethod(lambda device=None: 90)
    is_bf16_supported = staticmethod(lambda including_emulation=False: True)
    is_triton_capable = staticmethod(lambda device=None: True)
    raise_if_triton_unavailable = staticmethod(lambda device=None: None)


class Driver:
    """The driver that triton believes to be there, for inductor's reading of a kernel."""

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_active_torch_device = staticmethod(lambda: torch.device("cuda", 0))


@contextmanager
def hopper(impl: str):
    """Inductor and triton see an H100, and the ops take `impl` on the tensors that stand for it."""
    device_interface.init_device_reg()
    with ExitStack() as stack:
        known = {"cuda": Hopper, "cuda:0": Hopper}
        stack.enter_context(mock.patch.dict(device_interface.device_interfaces, known))
        stack.enter_context(mock.patch.dict(os.environ, {"LDAE_IMPL": forced(impl)}))
        for op in (*OPS, "mlp_gelu.middle"):
            for table in tables_of(importlib.import_module(f"ldae_fast.kernels.{op}")):
                free = {name: one._replace(refusal=never) for name, one in table.items()}
                stack.enter_context(mock.patch.dict(table, free))
        stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", Driver()))
        yield


def tables_of(module) -> list[dict]:
    """A module's tables of implementations."""
    tables = [value for value in vars(module).values() if isinstance(value, dict)]
    return [t for t in tables if any(isinstance(one, Implementation) for one in t.values())]


def forced(impl: str) -> str:
    return ",".join(f"{op}={impl}" for op in OPS)


@dataclass
class Count:
    """The kernels of some graphs. kinds, bytes: by kind; each: (bytes, launches) by description."""

    activation: int  # bytes of one (B, T, D) tensor of bfloat16
    kinds: Counter = field(default_factory=Counter)
    bytes: Counter = field(default_factory=Counter)
    each: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, node: BaseSchedulerNode) -> None:
        if isinstance(node, NopKernelSchedulerNode) or isinstance(node.node, ir.MultiOutput):
            return
        kind, moved = kind_of(node), bytes_of(node)
        self.kinds[kind] += 1
        self.bytes[kind] += moved
        if only_moves(node) and moved >= self.activation:
            self.kinds["copies"] += 1
        name = f"{kind:<10}{describe(node)}"
        before = self.each.get(name, (0, 0))
        self.each[name] = before[0] + moved, before[1] + 1


def bytes_of(node: BaseSchedulerNode) -> int:
    """What a kernel reads and writes, by inductor's count.

    It takes what a Triton kernel of ours writes for read as well, since to it that is a mutation.
    """
    moved = node.get_read_write_buffers_sizes()
    if isinstance(node.node, ir.UserDefinedTritonKernel):
        moved -= sum(x.get_numel() * x.get_dtype().itemsize for x in node.node.mutable_args)
    return int(moved)


def kind_of(node: BaseSchedulerNode) -> str:
    """products, attention, ours or fused."""
    if not node.is_extern():
        return "fused"
    name = name_of(node.node)
    if "attention" in name:
        return "attention"
    return "products" if name.rpartition(".")[2] in PRODUCTS else "ours"


def name_of(kernel: ir.ExternKernel) -> str:
    if isinstance(kernel, ir.UserDefinedTritonKernel):
        function = kernel.get_kernel_and_metadata()[0].fn
        return f"{function.__module__.split('.')[-2]}.{function.__name__}"
    return kernel.get_kernel_name() or type(kernel).__name__


def describe(node: BaseSchedulerNode) -> str:
    if node.is_extern():
        sizes = [tuple(map(int, x.get_size())) for x in node.node.inputs if hasattr(x, "get_size")]
        return f"{name_of(node.node)} {sizes[:3]}"
    parts = [part.node for part in node.get_nodes() if part.node is not None]
    names = {str(origin.target).replace("prims.", "aten.") for p in parts for origin in p.origins}
    names = sorted({name.removeprefix("aten.").partition(".")[0] for name in names})
    return f"{', '.join(names)} {sorted({tuple(map(int, p.get_size())) for p in parts})}"


def only_moves(node: BaseSchedulerNode) -> bool:
    if node.is_extern():
        return False
    bodies = [part._body for part in node.get_nodes() if isinstance(part, SchedulerNode)]
    return all({"load"} <= set(body.op_counts) <= MOVES for body in bodies)


def on_gpu(graph: torch.fx.GraphModule, mode: FakeTensorMode) -> list[Tensor]:
    """Says of every tensor in a traced graph that it is on a GPU; returns the graph's inputs."""

    def moved(value):
        if isinstance(value, FakeTensor):
            with mode:
                return torch.empty_strided(
                    value.shape, value.stride(), dtype=value.dtype, device="cuda"
                )
        is_cpu = isinstance(value, torch.device) and value.type == "cpu"
        return torch.device("cuda", 0) if is_cpu else value

    for node in graph.graph.nodes:
        node.kwargs = pytree.tree_map(moved, node.kwargs)
        if "val" in node.meta:
            node.meta["val"] = pytree.tree_map(moved, node.meta["val"])
    return [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]


def count_kernels(network: Callable, inputs: tuple, activation: int) -> Count:
    """The kernels of a forward and a backward pass of the network over fake tensors on a CPU.

    The trace is a CPU's, since autograd needs a real device; only then it is moved.
    """
    count = Count(activation)

    def lower(traced: torch.fx.GraphModule, example_inputs: list, is_backward=False, **options):
        graph = copy.deepcopy(traced)
        mode = detect_fake_mode([node.meta.get("val") for node in graph.graph.nodes])
        compile_fx.record_original_output_strides(graph)
        with V.set_fake_mode(mode), DebugContext():
            compile_fx._recursive_post_grad_passes(graph, is_inference=False)
            taken = on_gpu(graph, mode)
            lowering = GraphLowering(
                graph, taken, shape_env=mode.shape_env, is_backward=is_backward
            )
            with V.set_graph_handler(lowering), V.set_extern_kernel_nodes([]):
                lowering.run(*taken)
                lowering._update_scheduler()
                for node in lowering.scheduler.nodes:
                    count.add(node)

        def run(args: list):
            with detect_fake_mode(args):
                return traced(*args)

        run._boxed_call = True
        return run

    def backend(graph, example_inputs):
        return compile_fx.compile_fx(graph, example_inputs, inner_compile=lower)

    torch._dynamo.reset()
    compiled = torch.compile(network, backend=backend, fullgraph=True, dynamic=False)
    with torch.autocast("cpu", torch.bfloat16):
        made = compiled(*inputs)
        made.backward(torch.empty_like(made))
    return count


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What SDPA would call on a GPU; on a CPU it would call another operator."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


def keep_copies(model: LatentDAE) -> None:
    """Puts bfloat16 in place of all matrices but the embedding's, as the optimizer keeps them."""
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p.dim() > 1 and module is not model.encoder.embed:
                copied = nn.Parameter(torch.empty(p.shape, dtype=torch.bfloat16))
                setattr(module, name, copied)


def networks(config: Config, batch: int) -> dict[str, Callable[[], Count]]:
    """A function that counts, for every row of the table."""
    m, d = config.model, config.tokenizer.d
    side, values = config.data.image_size // m.patch, 3 * m.patch**2
    tokens, blocks = side**2, m.depth + m.decoder_depth
    with FakeTensorMode():
        patches, latents = torch.empty(batch, tokens, values), torch.empty(batch, tokens, d)
        t = torch.zeros(batch, dtype=torch.long)
        definition = LatentDAE(m, values, values, side)
        ours, narrow = (LatentDAE(m, values, values, side) for _ in range(2))
        for model in (ours, narrow):
            keep_copies(model)
        float8.replace_products(narrow)
        simple = plain.Model(m.width, blocks, m.heads, values, tokens)
        fold = (torch.empty(m.width, d, requires_grad=True),
                torch.empty(m.width, requires_grad=True))  # fmt: skip

    def count(impl: str, network: nn.Module, *inputs) -> Count:
        with hopper(impl), mock.patch.object(nn.functional, "scaled_dot_product_attention", flash):
            return count_kernels(network, inputs, 2 * batch * tokens * m.width)

    return {
        "definitions": lambda: count("reference", definition, patches, t),
        "plain model, SDPA": lambda: count("reference", simple, patches, t),
        "this package": lambda: count("triton", ours, latents, t, fold),
        "this package, float8": lambda: count("triton", narrow, latents, t, fold),
    }


def table(counts: dict[str, Count], blocks: int) -> str:
    kinds = ("products", "attention", "ours", "fused", "copies")
    lines = [f"{'network':<22}" + "".join(f"{k:>11}" for k in (*kinds, "GB", "E a block"))]
    for name, count in counts.items():
        rest = sum(b for kind, b in count.bytes.items() if kind != "products")
        lines.append(
            f"{name:<22}" + "".join(f"{count.kinds[kind]:>11,}" for kind in kinds)
            + f"{sum(count.bytes.values()) / 1e9:>11.3f}"
            + f"{rest / count.activation / blocks:>11.1f}"
        )  # fmt: skip
    return "\n".join(lines)


def kernels(count: Count, most: int = 60) -> str:
    """The kernels that move most, with how often they run."""
    ranked = sorted(count.each.items(), key=lambda item: -item[1][0])
    return "\n".join(f"{b / 1e6:>10.1f} MB {n:>4} x {name}" for name, (b, n) in ranked[:most])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="half-L")
    parser.add_argument("--image-size", type=int, default=256, help="pixels (default 256)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--kernels", action="store_true", help="lists those of this package's rows")
    args = parser.parse_args()
    config = build_config("ldae", args.image_size, args.size, {"optimizer.batch": args.batch})
    counts = {name: count() for name, count in networks(config, args.batch).items()}
    blocks = config.model.depth + config.model.decoder_depth
    print(f"{args.size}, {args.image_size} px, batch {args.batch}, bfloat16, "
          f"torch {torch.__version__}, triton {triton.__version__}")  # fmt: skip
    print(table(counts, blocks))
    if args.kernels:
        for name in ("this package", "this package, float8"):
            print(f"\n{name}\n{kernels(counts[name])}")


if __name__ == "__main__":
    main()
