"""Patch-wise AE and VAE: linear encoder V and decoder U (d, P), trained by gradient (section 4).

AE:  ||x - U^T V x||^2
VAE: the same with a code z drawn from N(V x, diag(s^2)), s one learned number a latent, plus
     KL[N(V x, diag(s^2)) || N(0, I)]. The code's noise need not be drawn, as U is linear:
     E ||x - U^T z||^2 = ||x - U^T V x||^2 + sum_i s_i^2 ||U_i||^2.

Both mean losses over patches x are functions of the patches' covariance C alone, so that each step
sees every patch, however many there are. The paper does not give its VAE's variance. With this
one, the best decoder is that of probabilistic PCA with noise of variance 1/2: U^T U is the sum of
(C_i - 1/2) e_i e_i^T over the d largest eigenvalues C_i, where they are above 1/2.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..noise import stream
from ..ops import ImageView
from .linear import LinearTokenizer, latent_scale
from .pca import fit_pca

ITERATIONS = 500  # of L-BFGS at most; it stops by itself where nothing is left to gain


def kl_to_standard_normal(second_moment: Tensor, log_variance: Tensor) -> Tensor:
    """KL[N(m, s^2) || N(0, 1)] = (m^2 + s^2 - 1 - log s^2) / 2, elementwise, in nats.

    second_moment: m^2, or its mean where the mean divergence is wanted; log_variance: log s^2.
    """
    return 0.5 * (second_moment + log_variance.exp() - 1 - log_variance)


def patch_loss(v: Tensor, u: Tensor, log_variance: Tensor | None, variance: Tensor) -> Tensor:
    """Mean loss a patch: that of the AE, or of the VAE where log_variance (d,) is given.

    v, u: (d, P) in the patches' principal components, of variance (P,): C is diagonal there.
    E ||x - U^T V x||^2 = tr(R C R^T) with R = I - U^T V.
    """
    latent = v * variance
    moments = latent @ v.T  # E[V x x^T V^T], (d, d)
    error = variance.sum() - 2 * (u * latent).sum() + ((u @ u.T) * moments).sum()
    if log_variance is None:
        return error
    spread = (log_variance.exp() * u.square().sum(1)).sum()
    return error + spread + kl_to_standard_normal(moments.diagonal(), log_variance).sum()


def fit_patch_ae(
    patches: Tensor, d: int, scale: str, view: ImageView, *, variational: bool, seed: int
) -> LinearTokenizer:
    """patches: (n, P) normalised. Float64 inside; the first V and U depend on the seed alone.

    Raises ValueError as `fit_pca` does. The latents of a VAE are its code's mean.
    """
    pca = fit_pca(patches, d, scale, view)
    values, variance = patches.shape[1], pca.variance.double()
    # V and U are learnt in units of each component's deviation: the same loss, a rounder valley.
    deviation = variance.clamp_min(1e-6 * float(variance.max())).sqrt()
    dice = torch.Generator().manual_seed(stream(seed, "patch autoencoder") >> 1)
    start = torch.randn(d, values, generator=dice, dtype=torch.float64) / math.sqrt(values)
    first = (start, start.clone(), torch.zeros(d, dtype=torch.float64))
    v, u, log_variance = (x.requires_grad_() for x in first)
    spread = log_variance if variational else None
    optimizer = torch.optim.LBFGS(
        [v, u, log_variance] if variational else [v, u], max_iter=ITERATIONS, history_size=20,
        tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = patch_loss(v / deviation, u * deviation, spread, variance)
        loss.backward()
        return loss

    optimizer.step(closure)
    encoder, decoder = v.detach() / deviation, u.detach() * deviation
    latent_variance = (encoder.square() * variance).sum(1)
    basis = pca.basis.double()
    return replace(
        pca,
        scale=latent_scale(scale, latent_variance.float(), d),
        trained=((encoder @ basis).float(), (decoder @ basis).float()),
        kind="patch-vae" if variational else "patch-ae",
    )
