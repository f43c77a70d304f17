"""The train step: noise, forward, loss, backward, clip, update. Nothing else says compile."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from .. import float8
from ..config import Config, SettingError
from ..data import Batch
from ..masked_autoencoder import MaskedAutoencoder, masked_training_flop
from ..masked_objective import MaskedObjective
from ..model import LatentDAE, training_flop
from ..objective import Objective, token_widths
from ..ops import AdamWEMA
from ..rates import peak
from ..tokenizers import Tokenizer
from ..training_state import load_training_state, training_state
from .capture import Captured
from .device import on_device
from .recompute import recompute_cheap
from .schedule import learning_rate

REACHED = 0.45  # of a GPU's peak, by a step that keeps it busy: the target; 0.49 on an H200
LAUNCH_S = 2e-3  # of the host, for a compiled block both ways; 2.6e-3 were seen beside an H200


class NotFinite(RuntimeError):
    """The loss or a gradient is not finite; no weight was changed."""


@dataclass(frozen=True)
class StepResult:
    """What a step found. Its numbers are on their way from the device until somebody reads them."""

    step: int
    lr: float
    ids: Tensor  # of the batch's images, (B,)
    numbers: Tensor  # on the host: loss, gradient norm, 1 where the weights were updated
    arrival: torch.cuda.Event | None

    @classmethod
    def send(cls, step: int, lr: float, ids: Tensor, numbers: Tensor) -> "StepResult":
        """numbers: (3,) on any device; the host does not wait for them."""
        if not numbers.is_cuda:
            return cls(step, lr, ids, numbers, None)
        host = torch.empty(3, pin_memory=True).copy_(numbers, non_blocking=True)
        arrival = torch.cuda.Event()
        arrival.record()
        return cls(step, lr, ids, host, arrival)

    @property
    def ready(self) -> bool:
        return self.arrival is None or self.arrival.query()

    def read(self) -> tuple[float, float]:
        """(loss, gradient norm). Waits for them; raises NotFinite where the step was called off."""
        if self.arrival is not None:
            self.arrival.synchronize()
        loss, norm, updated = self.numbers.tolist()
        if not updated:
            raise NotFinite(
                f"step {self.step + 1:,}: the loss is {loss} and the gradient norm {norm}; no "
                f"weight was changed. Images of this batch: {self.ids.tolist()}. Lower "
                "--optimizer.base_lr or set --optimizer.clip 1"
            )
        return loss, norm

    @property
    def loss(self) -> float:
        return self.read()[0]


def pick_precision(setting: str, device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it, else float32, unless the setting names one.

    float8 is bfloat16 but for some products. Raises SettingError where the device has none.
    """
    if setting.startswith("float8"):
        refused = float8.refusal(setting, device)
        if refused:
            raise SettingError(f"optimizer.precision {refused}")
        return torch.bfloat16
    if setting != "auto":
        return getattr(torch, setting)
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif hasattr(torch.cpu, "get_capabilities"):  # torch 2.12 and later
        fast = torch.cpu.get_capabilities().get("avx512_bf16", False)
    else:
        fast = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return torch.bfloat16 if fast else torch.float32


def norm_of_all(gradients: list[Tensor]) -> Tensor:
    """The 2-norm of all values together, float32, ()."""
    # One kernel for many tensors, where mixed dtypes would get one each.
    alike = {}
    for gradient in gradients:
        alike.setdefault(gradient.dtype, []).append(gradient)
    norms = [torch._foreach_norm(some, 2, dtype=torch.float32) for some in alike.values()]
    return torch.linalg.vector_norm(torch.stack([n for some in norms for n in some]))


def build_model(config: Config, tokenizer: Tokenizer) -> LatentDAE | MaskedAutoencoder:
    """A new network whose initial weights depend on the seed alone."""
    token, out = token_widths(config.objective, tokenizer)
    side, ratio = config.data.image_size // config.model.patch, config.objective.mask_ratio
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.objective.predict == "masked":
            return MaskedAutoencoder(config.model, token, side, ratio)
        return LatentDAE(config.model, token, out, side)


def flop_an_image(config: Config) -> int:
    """FLOP of the network's matrix products in one image's training step, forward and backward."""
    model, values = config.model, 3 * config.model.patch**2
    tokens = (config.data.image_size // model.patch) ** 2
    if config.objective.predict == "masked":
        ratio = config.objective.mask_ratio
        return masked_training_flop(model, values, tokens, ratio)
    return training_flop(model, values, tokens)


def waits_for_host(config: Config, device_name: str) -> bool:
    """Whether a GPU is through with a step before the host has launched the step's kernels.

    Then one launch of all of them, captured, is worth the memory that it keeps. False where the
    device's peak, which is of bfloat16, is not known, where memory is scarce enough to recompute,
    and where a batch is split, which a captured step cannot be.
    """
    most = peak(device_name)
    if config.optimizer.accumulate > 1 or config.speed.recompute or most is None:
        return False
    device_s = flop_an_image(config) * config.optimizer.batch / (REACHED * most)
    return device_s < LAUNCH_S * (config.model.depth + config.model.decoder_depth)


def build_objective(config: Config, tokenizer: Tokenizer, impl: str) -> Objective | MaskedObjective:
    if config.objective.predict == "masked":
        return MaskedObjective(config.objective, tokenizer, config.seed)
    return Objective(
        config.objective, config.noise, tokenizer, config.seed, config.speed.fold, impl
    )


class Engine:
    """Model, objective and optimizer of a run, and the step that moves them."""

    def __init__(self, config: Config, tokenizer: Tokenizer, device: str = "cpu", impl="auto"):
        if tokenizer.view.patch != config.model.patch:
            raise SettingError(
                f"model.patch must be {tokenizer.view.patch}, the side of the tokenizer's patches; "
                f"got {config.model.patch}"
            )
        self.config, self.device = config, torch.device(device)
        self.tokenizer = tokenizer.to(self.device)
        self.model = on_device(build_model(config, tokenizer), self.device)
        self.objective = build_objective(config, self.tokenizer, impl)
        o = config.optimizer
        self.dtype = pick_precision(o.precision, self.device)
        self.optimizer = AdamWEMA(
            self.groups(),
            betas=(o.beta1, o.beta2),
            weight_decay=o.weight_decay,
            ema=o.ema,
        )
        self.working = self.with_copies()
        if config.speed.recompute:
            recompute_cheap(self.working)
        self.network = self.compiled(self.working)
        self.sound = torch.tensor(True, device=self.device)  # every step so far was finite
        self.updating = False  # whether a step began to change weights and did not end

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
        network = copy.deepcopy(self.model, {**taken, **{id(b): b for b in self.model.buffers()}})
        if self.config.optimizer.float8:
            float8.replace_products(network)
        return network

    @property
    def compiles(self) -> bool:
        return self.compile_mode != "off"

    @property
    def compile_mode(self) -> str:
        """What speed.compile stands for here: off, blocks, on or graph."""
        mode = self.config.speed.compile
        if mode != "auto":
            return mode
        if self.device.type != "cuda":
            return "off"
        name = torch.cuda.get_device_name(self.device)
        small = self.dtype != torch.float32 and waits_for_host(self.config, name)
        return "graph" if small else "blocks"

    def compiled(self, network: LatentDAE) -> Callable:
        """The network with one graph that all its blocks share, or as one graph.

        A block's own is made once, in seconds whatever the depth. What crosses a block's border is
        one kernel already, so a graph of everything has little more to fuse.
        """
        mode = self.compile_mode
        if mode == "on":
            return torch.compile(network, fullgraph=True, dynamic=False)
        if mode != "off":
            for block in network.blocks:
                block.compile(fullgraph=True, dynamic=False)
        capture = mode == "graph" and self.device.type == "cuda"
        return Captured(network) if capture else network

    @property
    def graphs(self) -> int:
        """How many graphs torch.compile has made in this process."""
        return counters["stats"]["unique_graphs"]

    def autocast(self):
        # No weight is cast twice in a step, so there is nothing to keep a cast for.
        on = self.dtype != torch.float32
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on, cache_enabled=False)

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Mean loss of a batch, with its gradients added up in the parameters."""
        total = torch.zeros((), device=self.device)
        parts = self.config.optimizer.accumulate
        given = (batch.images, batch.ids, batch.flip, batch.labels)
        pieces = (x.to(self.device).chunk(parts) for x in given)
        share = 1 / len(batch.ids)
        for images, ids, flip, labels in zip(*pieces):
            total += self.part(self.network, images, ids, flip, step, share, labels)
        return total

    def part(
        self, network: Callable, images: Tensor, ids: Tensor, flip: Tensor, step: int, share: float,
        labels: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """`share` times the summed loss of some images; its gradients add up in the parameters."""
        told = labels if self.config.model.conditional else None
        with self.autocast():
            guess = self.objective.guess(network, images, ids, flip, step, told)
        return self.objective.backward(guess, images, flip, share).sum() * share

    def step(self, batch: Batch, step: int, progress: float) -> StepResult:
        """One update, called off where a number is not finite, and with it all that follow.

        The device decides, so that the host need not wait. The result raises NotFinite when it is
        read, which on a CPU is at once.
        """
        lr = learning_rate(self.config.optimizer, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch, step)
        norm = norm_of_all(self.optimizer.gradients())
        self.sound = self.sound & torch.isfinite(loss + norm)
        clip = self.config.optimizer.clip
        scale = (clip / (norm + 1e-6)).clamp(max=1.0) if clip else torch.ones_like(norm)
        scale = torch.where(self.sound, scale, torch.nan)
        self.updating = True
        self.optimizer.step(grad_scale=scale)
        result = StepResult.send(step, lr, batch.ids, torch.stack([loss, norm, self.sound.float()]))
        self.updating = False
        if self.device.type == "cpu":
            result.read()
        return result

    # --- State ------------------------------------------------------------------------------------

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a resumed run needs, as named tensors: weights, ema, optimizer."""
        return training_state(self.model, self.optimizer)

    def load_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Takes back what `state` gave; a missing or ill-shaped tensor raises."""
        load_training_state(self.model, self.optimizer, state)
