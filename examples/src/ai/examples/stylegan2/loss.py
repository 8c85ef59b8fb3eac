"""What StyleGAN2 minimises: the non-saturating loss with lazy R1 and lazy path-length regularisation.

Axes: `B` batch, `L` style inputs of the synthesis network, `W` width of a style.

Sources:
    Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (StyleGAN2), section 3 and appendix B.
    Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?", for R1.
    Karras et al. 2019, "A Style-Based Generator Architecture for GANs", section 3.1, for style mixing.

One deviation: the paper gives a regulariser an optimiser step of its own every k steps. Here its gradient, multiplied
by k, is added to that of the main loss on every k-th step, so that one step stays one update of each network and
Adam's constants need no correction.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.examples.stylegan2.model import Discriminator, Generator
from ai.train import log, rank
from ai.train.gan import r1_penalty

# Keep the draws of the two networks apart: each is a function of (seed, step, network).
_STREAMS = {"d": 0, "g": 1}


class StyleGAN2Loss:
    """An environment for `MultiTrainer` with a generator `g` and a discriminator `d`.

    Every latent is a function of (seed, step, network), so that a resumed run draws what the unbroken one would have.
    The running mean of the path length is kept in the generator, and saved with it.

    Args:
        r1_gamma: Weight of R1; the loss is `gamma / 2 * |∇D(x)|²`. Published: 10 at 1024², about
            `0.0002 * pixels / batch size` elsewhere.
        r1_interval: R1 is added every so many steps; 0 never.
        path_weight: Weight of the path-length regulariser.
        path_interval: It is added every so many steps; 0 never.
        path_decay: How fast the mean path length follows.
        path_shrink: The regulariser sees the batch divided by this.
        style_mixing: Probability that an image takes its later styles from a second latent.
        mirror: Mirrors half of the real images.
        augment: Applied to real and generated images alike before the discriminator, called as `(images, generator)`.
            R1 is the gradient with respect to the augmented image.
        seed: Seeds latents, mixing and augmentation.
    """

    def __init__(
        self,
        *,
        r1_gamma: float = 10.0,
        r1_interval: int = 16,
        path_weight: float = 2.0,
        path_interval: int = 4,
        path_decay: float = 0.01,
        path_shrink: int = 2,
        style_mixing: float = 0.9,
        mirror: bool = False,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        seed: int = 0,
    ):
        if not 0 <= style_mixing <= 1:
            raise ValueError(f"style_mixing must be a probability, not {style_mixing}")
        self.r1_gamma, self.r1_interval = r1_gamma, r1_interval
        self.path_weight, self.path_interval = path_weight, path_interval
        self.path_decay, self.path_shrink = path_decay, path_shrink
        self.style_mixing = style_mixing
        self.mirror = mirror
        self.augment = augment
        self.seed = seed
        self._last = (0, "", True, 0)  # of the call before: step, network, whether it trained, micro-batch

    def __call__(self, key: str, models: Mapping[str, nn.Module], batch: Any, step: int) -> Tensor:
        """Returns the loss of network `key` (`"g"` or `"d"`) on a batch of real images `x`, with labels `y` if any."""
        generator, discriminator = models["g"], models["d"]
        assert isinstance(generator, Generator)
        assert isinstance(discriminator, Discriminator)
        draws = self._draws(key, step, batch["x"].device)
        label = batch["y"] if generator.n_classes else None
        if key == "g":
            return self.generator_loss(generator, discriminator, batch["x"], label, step, draws)
        return self.discriminator_loss(generator, discriminator, batch["x"], label, step, draws)

    def _draws(self, key: str, step: int, device: torch.device) -> torch.Generator:
        """Returns a generator for this network, step, micro-batch and rank; none of these draws what another does."""
        *before, part = self._last
        now = (step, key, torch.is_grad_enabled())
        part = part + 1 if tuple(before) == now else 0
        self._last = (*now, part)
        place = (self.seed, step, _STREAMS[key], *((part, rank()) if part or rank() else ()))
        # Of the images' device: what is drawn elsewhere would have to be copied there, at every step.
        return torch.Generator(device).manual_seed(hash(place) % 2**63)

    def generator_loss(
        self,
        generator: Generator,
        discriminator: Discriminator,
        real: Tensor,
        label: Tensor | None,
        step: int,
        draws: torch.Generator,
    ) -> Tensor:
        """Returns `-log sigmoid(D(G(z)))`, plus the path-length penalty on the steps that have it."""
        w = self.styles(generator, len(real), label, draws)
        logits = discriminator(self._augmented(generator.synthesis(w), draws), label)
        loss = F.softplus(-logits).mean()
        log("adversarial_g", loss)
        regularise = self.path_weight > 0 and self.path_interval > 0 and step % self.path_interval == 0
        if regularise and torch.is_grad_enabled():
            n = max(1, len(real) // self.path_shrink)
            w = self.styles(generator, n, None if label is None else label[:n], draws)
            lengths = path_lengths(generator.synthesis(w), w, draws)
            generator.path_mean.lerp_(lengths.detach().mean().to(generator.path_mean), self.path_decay)
            log("path_length", generator.path_mean)
            penalty = (lengths - generator.path_mean.clone()).square().mean()
            loss = loss + self.path_weight * self.path_interval * penalty
        return loss

    def discriminator_loss(
        self,
        generator: Generator,
        discriminator: Discriminator,
        real: Tensor,
        label: Tensor | None,
        step: int,
        draws: torch.Generator,
    ) -> Tensor:
        """Returns `-log sigmoid(D(x)) - log(1 - sigmoid(D(G(z))))`, plus R1 on the steps that have it."""
        with torch.no_grad():
            fake = generator.synthesis(self.styles(generator, len(real), label, draws))
        fake_logits = discriminator(self._augmented(fake, draws), label)
        if self.mirror:
            turned = torch.rand(len(real), 1, 1, 1, generator=draws, device=real.device) < 0.5
            real = torch.where(turned, real.flip(3), real)
        regularise = self.r1_gamma > 0 and self.r1_interval > 0 and step % self.r1_interval == 0
        regularise = regularise and torch.is_grad_enabled()  # not while validating
        real = self._augmented(real, draws).detach().requires_grad_(regularise)
        real_logits = discriminator(real, label)
        loss = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
        log("adversarial_d", loss)
        log("logit_real", real_logits.mean())
        log("logit_fake", fake_logits.mean())
        if regularise:
            penalty = r1_penalty(real_logits, real)
            log("r1", penalty)
            loss = loss + self.r1_gamma / 2 * self.r1_interval * penalty
        return loss

    def styles(self, generator: Generator, n: int, label: Tensor | None, draws: torch.Generator) -> Tensor:
        """Returns `(B, L, W)` styles of fresh latents, some of them mixed from two."""
        w: Tensor = generator.mapping(_latents(generator, n, draws), label)
        if not self.style_mixing:
            return w
        second = generator.mapping(_latents(generator, n, draws), label)
        mixed = torch.rand(n, 1, 1, generator=draws, device=w.device) < self.style_mixing
        crossover = torch.randint(1, w.shape[1], (n, 1, 1), generator=draws, device=w.device)
        takes_second = mixed & (torch.arange(w.shape[1], device=w.device)[None, :, None] >= crossover)
        return torch.where(takes_second, second, w)

    def _augmented(self, images: Tensor, draws: torch.Generator) -> Tensor:
        if self.augment is None:
            return images
        if draws.device.type != "cpu":  # to read a seed that is drawn there would be to wait
            return self.augment(images, draws)
        seed = int(torch.randint(2**62, (), generator=draws, device="cpu"))
        return self.augment(images, torch.Generator().manual_seed(seed))


def path_lengths(images: Tensor, w: Tensor, draws: torch.Generator) -> Tensor:
    """Returns `(B,)`, the length `|Jᵀ y|` of the step in image space that a unit step of the styles makes.

    Args:
        images: `(B, channels, height, width)`, made from `w`.
        w: `(B, L, W)`; the length is the root of the mean over `L` of the squared norms over `W`, as published.
        draws: Draws the random image `y`.
    """
    height, width = images.shape[-2:]
    y = torch.randn(images.shape, generator=draws, device=images.device).to(images.dtype) / math.sqrt(height * width)
    (gradient,) = torch.autograd.grad((images * y).sum(), w, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


def _latents(generator: Generator, n: int, draws: torch.Generator) -> Tensor:
    w_avg = generator.mapping.w_avg
    return torch.randn(n, generator.z_dim, generator=draws, device=w_avg.device).to(w_avg.dtype)
