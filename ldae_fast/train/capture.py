"""A network's forward and backward pass as two CUDA graphs, each launched by one call."""

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

WARM_UP = 3  # passes before the capture, in which everything that is compiled gets compiled


def static(x: Tensor) -> Tensor:
    """A tensor like x that stays in its place, for the graphs to read."""
    return x.detach().clone().requires_grad_(x.requires_grad)


class OfTensors(nn.Module):
    """The network as a function of those arguments alone that are not None."""

    def __init__(self, network: nn.Module, args: tuple):
        super().__init__()
        self.network, self.given = network, [a is not None for a in args]

    def forward(self, *args) -> Tensor:
        rest = iter(args)
        return self.network(*(next(rest) if given else None for given in self.given))


class Captured:
    """Captures the network at its first call; every call must bring tensors of the same shapes.

    Outputs and gradients lie in the graphs' own memory: they hold until the next call. Autocast, if
    on, must not cache its casts.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self.graphs = None

    def __call__(self, *args) -> Tensor:
        tensors = tuple(a for a in args if a is not None)
        if self.graphs is None:
            self.graphs = torch.cuda.make_graphed_callables(
                OfTensors(self.network, args), tree_map(static, tensors),
                num_warmup_iters=WARM_UP, allow_unused_input=True,
            )  # fmt: skip
        return self.graphs(*tensors)

    def release(self) -> None:
        """Lets go of the graphs and of their memory; the next call captures anew."""
        self.graphs = None

    def __getattr__(self, name: str):
        return getattr(self.network, name)
