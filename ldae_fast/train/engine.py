"""The train step: noise, forward, loss, backward, clip, update. Nothing else says compile."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Config
from ..data import Batch
from ..model import LatentDAE
from ..objective import Objective, token_widths
from ..ops import AdamWEMA
from ..tokenizers import LinearTokenizer
from .schedule import learning_rate


class NotFinite(RuntimeError):
    """The loss or a gradient is not finite; no weight was changed."""


@dataclass(frozen=True)
class StepResult:
    """loss and grad_norm: 0-d tensors, left on the device until somebody reads them."""

    loss: Tensor
    grad_norm: Tensor
    lr: float


def pick_precision(setting: str, device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it, else float32, unless the setting names one."""
    if setting != "auto":
        return getattr(torch, setting)
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.12 and later
        fast = capabilities.get("avx512_bf16", False)
    return torch.bfloat16 if fast else torch.float32


def build_model(config: Config, tokenizer: LinearTokenizer) -> LatentDAE:
    """A new network whose initial weights depend on the seed alone."""
    token, out = token_widths(config.objective, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LatentDAE(config.model, token, out, config.data.image_size // config.model.patch)


class Engine:
    """Model, objective and optimizer of a run, and the step that moves them."""

    def __init__(
        self, config: Config, tokenizer: LinearTokenizer, device: str = "cpu", impl="auto"
    ):
        self.config, self.device = config, torch.device(device)
        self.tokenizer = tokenizer.to(self.device)
        self.model = build_model(config, tokenizer).to(self.device)
        self.objective = Objective(
            config.objective, config.noise, self.tokenizer, config.seed, config.speed.fold, impl
        )
        o = config.optimizer
        self.dtype = pick_precision(o.precision, self.device)
        self.optimizer = AdamWEMA(
            self.groups(),
            betas=(o.beta1, o.beta2),
            weight_decay=o.weight_decay,
            ema=o.ema,
        )
        self.working = self.with_copies()
        self.network = torch.compile(self.working) if config.speed.compile else self.working

    def groups(self) -> list[dict]:
        """Matrices, with a copy in the precision of the products, and all other parameters.

        The embedding has no copy: it is folded with the inverse PCA in float32. Nor has anything
        where gradients are added up over several parts, which needs float32.
        """
        wanted = self.config.speed.weight_copy and self.config.optimizer.accumulate == 1
        if not wanted or self.dtype == torch.float32:
            return [{"params": list(self.model.parameters())}]
        embed = set(self.model.encoder.embed.parameters())
        copied = [p for p in self.model.parameters() if p.dim() > 1 and p not in embed]
        others = [p for p in self.model.parameters() if p.dim() == 1 or p in embed]
        return [{"params": copied, "copy": self.dtype}, {"params": others}]

    def with_copies(self) -> LatentDAE:
        """The network that a step runs: the model's own parameters, or the optimizer's copies."""
        taken = {id(p): own.get("copy", p) for p, own in self.optimizer.state.items()}
        return copy.deepcopy(self.model, {**taken, **{id(b): b for b in self.model.buffers()}})

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype != torch.float32)

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Mean loss of a batch, with its gradients added up in the parameters."""
        total = torch.zeros((), device=self.device)
        parts = self.config.optimizer.accumulate
        pieces = (x.to(self.device).chunk(parts) for x in (batch.images, batch.ids, batch.flip))
        for images, ids, flip in zip(*pieces):
            with self.autocast():
                guess = self.objective.guess(self.network, images, ids, flip, step)
            share = 1 / len(batch.ids)
            total += self.objective.backward(guess, images, flip, share).sum() * share
        return total

    def step(self, batch: Batch, step: int, progress: float) -> StepResult:
        """One update. Raises NotFinite, every weight untouched, when a number is not finite."""
        lr = learning_rate(self.config.optimizer, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch, step)
        norms = torch._foreach_norm(self.optimizer.gradients(), 2, dtype=torch.float32)
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if not torch.isfinite(loss + norm):
            raise NotFinite(
                f"step {step}: the loss is {float(loss)} and the gradient norm {float(norm)}; no "
                f"weight was changed. Images of this batch: {batch.ids.tolist()}. Lower "
                "--optimizer.base_lr or set --optimizer.clip 1"
            )
        clip = self.config.optimizer.clip
        scale = (clip / (norm + 1e-6)).clamp(max=1.0) if clip else None
        self.optimizer.step(grad_scale=scale)
        return StepResult(loss, norm, lr)

    # --- State ------------------------------------------------------------------------------------

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a resumed run needs, as named tensors: weights, ema, optimizer."""
        names = {p: n for n, p in self.model.named_parameters()}
        moments, ema = {}, {}
        for p, state in self.optimizer.state.items():
            ema[names[p]] = state["ema"]
            for key in ("step", "exp_avg", "exp_avg_sq"):
                moments[f"{names[p]}/{key}"] = state[key]
        return {"model": dict(self.model.state_dict()), "ema": ema, "optimizer": moments}

    def load_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Takes back what `state` gave; a missing or ill-shaped tensor raises."""
        self.model.load_state_dict(state["model"])
        for name, p in self.model.named_parameters():
            own = self.optimizer.state[p]
            own["ema"].copy_(state["ema"][name])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                own[key].copy_(state["optimizer"][f"{name}/{key}"])
        self.optimizer.refresh_copies()
