"""The one door to the fused ops; needs nothing of the engine."""

from .kernels.adamw_ema import adamw_ema
from .kernels.attention import attention, attention_packed
from .kernels.denoise_loss import denoise_loss
from .kernels.gate_residual_layernorm_modulate import gate_residual_layernorm_modulate
from .kernels.layernorm_modulate import layernorm_modulate
from .kernels.mlp_gelu import mlp_gelu
from .kernels.normal import normal
from .kernels.patch_pca_noise import patch_pca_noise
from .kernels.patches import ImageView, patchify, unpatchify

__all__ = [
    "ImageView",
    "adamw_ema",
    "attention",
    "attention_packed",
    "denoise_loss",
    "gate_residual_layernorm_modulate",
    "layernorm_modulate",
    "mlp_gelu",
    "normal",
    "patch_pca_noise",
    "patchify",
    "unpatchify",
]
