"""What a resumed training needs of a network and its optimizer, as named tensors."""

from torch import Tensor, nn

from .ops import AdamWEMA

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def training_state(model: nn.Module, optimizer: AdamWEMA) -> dict[str, dict[str, Tensor]]:
    """Weights, their averages and the optimizer's moments by parameter, each tensor as it lies."""
    moments, ema = {}, {}
    for name, p in model.named_parameters():
        own = optimizer.state[p]
        ema[name] = own["ema"]
        moments |= {f"{name}/{key}": own[key] for key in MOMENTS}
    return {"model": dict(model.state_dict()), "ema": ema, "optimizer": moments}


def load_training_state(
    model: nn.Module, optimizer: AdamWEMA, state: dict[str, dict[str, Tensor]]
) -> None:
    """Takes back what `training_state` gave; a missing or ill-shaped tensor raises."""
    model.load_state_dict(state["model"])
    for name, p in model.named_parameters():
        own = optimizer.state[p]
        own["ema"].copy_(state["ema"][name])
        for key in MOMENTS:
            own[key].copy_(state["optimizer"][f"{name}/{key}"])
    optimizer.refresh_copies()
