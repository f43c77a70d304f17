"""The four terms that a convolutional tokenizer is trained by, each removable by its weight."""

import torch
from torch import Tensor, nn

from ..config import TokenizerConfig
from .conv_net import ConvAutoencoder
from .patch_gan import PatchGan, adaptive_weight, hinge
from .perceptual import Stages, perceptual_distance


class ConvLoss(nn.Module):
    """Latent Diffusion's loss of an autoencoder, the mean over images of the sum over values:

    (w_r |x - x'| + w_p LPIPS(x, x')) / e^l + l + w_KL KL + w_a a (-D(x')), l learned, a adaptive.

    network: what the perceptual distance compares by, or None where its weight is 0.
    mean, std: by which pixels are normalised, so that it is given images in 0..1.
    """

    def __init__(
        self, config: TokenizerConfig, side: int, network: Stages | None, mean: tuple, std: tuple
    ):
        super().__init__()
        self.config, self.network = config, network
        self.log_variance = nn.Parameter(torch.zeros(()))
        channels = max(1, config.channels // 2)
        self.critic = PatchGan(channels, side) if config.adversarial else None
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(
        self, net: ConvAutoencoder, x: Tensor, noise: Tensor, adversarial: bool
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """x: normalised images (B, 3, S, S); noise: for the latents; adversarial: has it begun.

        Returns the loss, its terms as they are logged, and the reconstruction.
        """
        weights = self.config
        posterior = net.posterior(x)
        back = net.decoder(posterior.sample(noise))
        error = (x - back).abs()  # (B, 3, S, S)
        terms = {"l1": error.mean().detach()}
        error = weights.reconstruction * error
        if weights.perceptual:
            distance = perceptual_distance(self.network, self.pixels(x), self.pixels(back))
            terms["perceptual"] = distance.mean().detach()
            error = error + weights.perceptual * distance[:, None, None, None]
        error = error / self.log_variance.exp() + self.log_variance
        loss = reconstruction = error.sum() / len(x)
        if weights.kl:
            kl = posterior.kl().mean()
            terms["kl"] = kl.detach()
            loss = loss + weights.kl * kl
        if weights.adversarial and adversarial:
            fooled = -self.critic(back).mean()
            weight = adaptive_weight(reconstruction, fooled, net.decoder[-1].weight)
            terms |= {"adversarial": fooled.detach(), "adversarial_weight": weight}
            loss = loss + weights.adversarial * weight * fooled
        return loss, terms, back

    def criticise(self, x: Tensor, back: Tensor) -> Tensor:
        """The discriminator's own loss, for real images and reconstructions."""
        return hinge(self.critic(x), self.critic(back.detach()))

    def pixels(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean
