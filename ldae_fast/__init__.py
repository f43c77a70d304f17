"""Self-supervised pre-training by latent denoising (l-DAE), and the fused ops it is made of."""

__version__ = "0.1.0"
