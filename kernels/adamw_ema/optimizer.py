"""adamw_ema as an optimizer of torch."""

import torch
from torch import Tensor

from ..implementation import FLOAT, FLOATS, number, refuse, require_impl
from . import IMPLEMENTATIONS, adamw_ema, check_numbers

COPIES = (None, torch.bfloat16, torch.float16)


def following(steps: list[Tensor]) -> list[int]:
    """The number after each of these 0-d tensors on the host."""
    return [int(step) + 1 for step in torch.stack(steps).tolist()] if steps else []


def plain(rate: float | Tensor) -> float:
    """A learning rate that torch's optimizers may hold as a tensor without dimensions."""
    return rate.item() if isinstance(rate, Tensor) and rate.dim() == 0 else rate


def check_options(group: dict) -> None:
    """ValueError that names an option of torch's optimizers that a step would ignore."""
    for name in ("amsgrad", "maximize"):
        if group.get(name):
            refuse("AdamWEMA", name, "False", group.get(name))
    if group["weight_decay"] and not group.get("decoupled_weight_decay", True):
        refuse("AdamWEMA", "decoupled_weight_decay", "True with a weight_decay", False)


class AdamWEMA(torch.optim.Optimizer):
    """torch.optim.AdamW plus `state[p]["ema"]`, the moving average of each parameter, in one pass.

    The average warms up: its decay is min(ema, (1 + step) / (10 + step)), so that a short run does
    not average over its own initial weights. With `copy`, torch.bfloat16 or torch.float16, which a
    parameter group may have for itself, `state[p]["copy"]` follows each parameter in that dtype: a
    leaf that a network can compute with, whose gradient is taken where the parameter has none.
    State loads from torch.optim.AdamW's and into it; an average that is not there begins at the
    parameter. Loading keeps every group's `copy`, and the leaves themselves, which take over the
    parameters as they are then. Raises ValueError naming a bad setting. Source: Loshchilov and
    Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.

    torch.amp.GradScaler looks for gradients at the parameters themselves, so not with `copy`: there
    `step(grad_scale=...)` takes a loss's scale back, and `gradients()` has what to clip by. Not for
    torch.compile: a step's numbers are compiled into it, and it is one pass without.

    >>> layer = torch.nn.Linear(3, 2)
    >>> optimizer = AdamWEMA(layer.parameters(), lr=1e-3, ema=0.99)
    >>> layer(torch.ones(1, 3)).sum().backward()
    >>> optimizer.step()
    >>> optimizer.state[layer.weight]["ema"].shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        ema: float = 0.9999,
        copy: torch.dtype | None = None,
        impl: str = "auto",
    ) -> None:
        """ema: the decay that the average warms up to. impl: as in adamw_ema."""
        require_impl("AdamWEMA", impl, IMPLEMENTATIONS)
        self.impl = impl
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "ema": ema,
                    "copy": copy}  # fmt: skip
        super().__init__(params, defaults)

    def __getstate__(self) -> dict:
        """What copy and pickle take: torch's keeps no attribute of a subclass."""
        return super().__getstate__() | {"impl": self.impl}

    def add_param_group(self, param_group: dict) -> None:
        """As torch.optim.Optimizer's; ValueError that names a setting that cannot be."""
        op, g = "AdamWEMA", self.defaults | param_group
        check_numbers(op, plain(g["lr"]), g["betas"], g["eps"], g["weight_decay"])
        if not (number(g["ema"], 0) and g["ema"] < 1):
            refuse(op, "ema", "a number from 0 to below 1", g["ema"])
        if g["copy"] not in COPIES:
            refuse(op, "copy", "None, torch.bfloat16 or torch.float16", g["copy"])
        check_options(g)
        super().add_param_group(param_group)
        group = self.param_groups[-1]  # with the parameters that an iterator or names gave
        for p in group["params"]:
            if p.dtype not in FLOATS:
                del self.param_groups[-1]
                refuse(op, "params", f"of {FLOAT}", p.dtype)
        for p in group["params"]:
            self.complete(p, group)

    def complete(self, p: Tensor, group: dict) -> dict:
        """The parameter's state, with all that it lacked."""
        own = self.state[p]
        # On the host, where AdamW(fused=True) has it on the device: a step reads it.
        own["step"] = torch.as_tensor(own.get("step", 0.0), dtype=torch.float32, device="cpu")
        for name in ("exp_avg", "exp_avg_sq"):
            if name not in own:
                own[name] = torch.zeros_like(p)
        if "ema" not in own:
            own["ema"] = p.detach().clone()
        if group["copy"] is not None and "copy" not in own:
            own["copy"] = torch.nn.Parameter(p.detach().to(group["copy"]))
        return own

    @torch.no_grad()
    def refresh_copies(self) -> None:
        """Takes the parameters over into their copies, after something else has written them."""
        for p, own in self.state.items():
            if "copy" in own:
                own["copy"].copy_(p)

    def pairs(self, group: dict) -> list[tuple[Tensor, dict, Tensor]]:
        """(parameter, its state, gradient that a step takes: its own, else its copy's) of those
        that have one."""
        found = []
        for p in group["params"]:
            own = self.state[p] or self.complete(p, group)  # as where a borrower cleared it
            grad = p.grad
            if grad is None and "copy" in own:
                grad = own["copy"].grad
            if grad is not None:
                found.append((p, own, grad))
        return found

    def gradients(self) -> list[Tensor]:
        """Every gradient that the next step would take."""
        return [grad for group in self.param_groups for _, _, grad in self.pairs(group)]

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for own in self.state.values():
            if "copy" in own and own["copy"].grad is not None:
                own["copy"].grad = None if set_to_none else own["copy"].grad.zero_()

    def load_state_dict(self, state_dict: dict) -> None:
        """From this optimizer's own state or torch.optim.AdamW's.

        ValueError that names an option of another optimizer's, as amsgrad, or Adam's weight decay.
        """
        for group in state_dict["param_groups"]:
            check_options(self.defaults | group)
        groups, states = self.param_groups, self.state
        super().load_state_dict(state_dict)  # makes new ones
        for group, old in zip(self.param_groups, groups, strict=True):
            for name in old.keys() - group.keys():
                group[name] = old[name]
            group["copy"] = old["copy"]
            for p in group["params"]:
                self.state[p].pop("copy", None)  # a saved one is no leaf that a network holds
                if "copy" in states[p]:
                    self.state[p]["copy"] = states[p]["copy"]
                self.complete(p, group)
        self.refresh_copies()

    @torch.no_grad()
    def step(self, closure=None, *, grad_scale: Tensor | None = None):
        """One update of every parameter that has a gradient, each multiplied by `grad_scale`.

        grad_scale: 0-d tensor on the parameters' device. Where it is not finite, only the step is
        counted. Raises ValueError as adamw_ema does; then that step is not.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            pairs, alike = self.pairs(group), {}
            for pair, step in zip(pairs, following([own["step"] for _, own, _ in pairs])):
                p, _, grad = pair
                alike.setdefault((p.device, p.dtype, grad.dtype, step), []).append(pair)
            for (*_, step), some in alike.items():
                self.update(group, some, step, grad_scale)
                torch._foreach_add_([own["step"] for _, own, _ in some], 1)
        return loss

    def update(self, group: dict, pairs: list[tuple], step: int, scale: Tensor | None) -> None:
        params, states, grads = map(list, zip(*pairs))
        adamw_ema(
            params,
            grads,
            *([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "ema")),
            copies=[s["copy"] for s in states] if group["copy"] is not None else (),
            step=step,
            lr=plain(group["lr"]),
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            ema_decay=min(group["ema"], (1 + step) / (10 + step)),
            grad_scale=torch.ones((), device=params[0].device) if scale is None else scale,
            impl=self.impl,
        )
