"""The one door to the fused ops, as functions and as modules; needs nothing of the engine."""

from .kernels.adamw_ema import adamw_ema
from .kernels.adamw_ema.optimizer import AdamWEMA
from .kernels.attention import attention, attention_packed
from .kernels.attention.module import Attention
from .kernels.denoise_loss import denoise_loss, denoise_loss_and_gradient
from .kernels.denoise_loss.module import DenoiseLoss
from .kernels.gate_residual_layernorm_modulate import gate_residual_layernorm_modulate
from .kernels.gate_residual_layernorm_modulate.module import GateResidualLayerNormModulate
from .kernels.layernorm_modulate import layernorm_modulate
from .kernels.layernorm_modulate.module import LayerNormModulate
from .kernels.mlp_gelu import mlp_gelu
from .kernels.mlp_gelu.module import MLPGelu
from .kernels.normal import normal
from .kernels.patch_pca_noise import patch_pca_noise
from .kernels.patch_pca_noise.module import PatchPCANoise
from .kernels.patches import ImageView, patchify, unpatchify
from .kernels.quantise_float8 import quantise_float8

__all__ = [
    "AdamWEMA",
    "Attention",
    "DenoiseLoss",
    "GateResidualLayerNormModulate",
    "ImageView",
    "LayerNormModulate",
    "MLPGelu",
    "PatchPCANoise",
    "adamw_ema",
    "attention",
    "attention_packed",
    "denoise_loss",
    "denoise_loss_and_gradient",
    "gate_residual_layernorm_modulate",
    "layernorm_modulate",
    "mlp_gelu",
    "normal",
    "patch_pca_noise",
    "patchify",
    "quantise_float8",
    "unpatchify",
]
