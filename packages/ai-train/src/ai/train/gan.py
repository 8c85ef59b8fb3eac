"""Environments of `MultiTrainer` for adversarial training: `Gan` and `AdversarialAutoencoder`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.model.arguments import check_real, check_whole
from ai.train.engine.log import is_logging, log
from ai.train.env import images

Models = Mapping[str, nn.Module]


class Gan:
    """A generator `g` against a discriminator `d`.

    `models['g'](z)` makes images from `z [B, n_latent]`, drawn from N(0, 1); `models['d'](x)` gives one logit an image.
    The generator's step does not build the discriminator's gradients, nor the other way round.

    Args:
        n_latent: size of z.
        loss: `'non_saturating'` (Goodfellow et al. 2014), `'hinge'` (Miyato et al. 2018) or `'wgan_gp'` (Gulrajani et
            al. 2017, equation 3, with a penalty of 10).
        r1: γ of the R1 penalty on real images, γ/2 · ‖∇d(x)‖² (Mescheder, Geiger and Nowozin 2018, equation 9).
        r1_interval: compute R1 only every so many steps, multiplied by the interval ("lazy regularisation": Karras et
            al. 2020, StyleGAN2, appendix B).
        conditional: call both models with the batch's `y` as a second argument.
        augment: (images, generator) -> images, as `ai.data.augment` makes them: all that `d` sees, real and generated,
            in both steps, goes through it, and R1's gradient is with respect to what comes out (Karras et al. 2020,
            Training generative adversarial networks with limited data).

    The batch is a tensor, a dict with `'x'`, or a tuple that starts with it.

    >>> models = {'g': nn.Linear(2, 3), 'd': nn.Linear(3, 1)}
    >>> env = Gan(2)
    >>> env('d', models, torch.randn(8, 3), 0).shape, env('g', models, torch.randn(8, 3), 0).shape
    (torch.Size([]), torch.Size([]))
    """

    def __init__(
        self,
        n_latent: int,
        *,
        loss: str = "non_saturating",
        r1: float = 0.0,
        r1_interval: int = 16,
        conditional: bool = False,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    ) -> None:
        if loss not in ("non_saturating", "hinge", "wgan_gp"):
            raise ValueError(f"loss must be 'non_saturating', 'hinge' or 'wgan_gp', not {loss!r}")
        check_whole(n_latent=n_latent, r1_interval=r1_interval)
        check_real(r1=r1)
        if n_latent < 1:
            raise ValueError(f"n_latent must be at least 1, not {n_latent}")
        if r1 < 0 or r1_interval < 1:
            raise ValueError(f"r1 ({r1}) must not be negative and r1_interval ({r1_interval}) be at least 1")
        self.n_latent, self.loss, self.r1, self.r1_interval = n_latent, loss, r1, r1_interval
        self.conditional, self.augment = conditional, augment

    def __call__(self, key: str, models: Models, batch: Any, step: int) -> Tensor:
        """The loss of `'g'` or `'d'`."""
        real = images(batch)
        condition = (batch["y"] if isinstance(batch, Mapping) else batch[1],) if self.conditional else ()
        z = torch.randn(len(real), self.n_latent, device=real.device)
        if key == "g":
            return self._generator_loss(models["d"](self._seen(models["g"](z, *condition)), *condition))
        if key != "d":
            raise KeyError(f"Gan trains the models 'g' and 'd', not {key!r}")
        with torch.no_grad():
            fake = models["g"](z, *condition)
        return self._discriminator_loss(models["d"], self._seen(real), self._seen(fake), condition, step)

    def _seen(self, x: Tensor) -> Tensor:
        if self.augment is None:
            return x
        # Of the global state, which snapshots hold; on the CPU, without a wait.
        seed = int(torch.randint(2**62, (), device="cpu"))
        return self.augment(x, torch.Generator(x.device).manual_seed(seed))

    def _generator_loss(self, logits: Tensor) -> Tensor:
        return F.softplus(-logits).mean() if self.loss == "non_saturating" else -logits.mean()

    def _discriminator_loss(
        self, d: nn.Module, real: Tensor, fake: Tensor, condition: tuple[Tensor, ...], step: int
    ) -> Tensor:
        # Under no_grad (validation) there are no gradients to penalise.
        use_r1 = self.r1 > 0 and step % self.r1_interval == 0 and torch.is_grad_enabled()
        if use_r1:
            real = real.detach().requires_grad_(True)
        on_real, on_fake = d(real, *condition), d(fake, *condition)
        if is_logging():
            log("logit_real", on_real.detach().mean())
            log("logit_fake", on_fake.detach().mean())
        if self.loss == "hinge":
            loss = F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()
        elif self.loss == "wgan_gp":
            loss = on_fake.mean() - on_real.mean()
            if torch.is_grad_enabled():
                loss = loss + 10.0 * gradient_penalty(lambda x: d(x, *condition), real, fake)
        else:
            loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
        if use_r1:
            penalty = r1_penalty(on_real, real)
            log("r1", penalty)
            loss = loss + penalty * (self.r1 / 2 * self.r1_interval)
        return loss


def r1_penalty(logits: Tensor, x: Tensor) -> Tensor:
    """The mean squared norm of the logits' gradient with respect to `x [B, ...]`, which must require gradients.

    >>> x = torch.ones(4, 2, requires_grad=True)
    >>> float(r1_penalty((3 * x).sum(1), x))
    18.0
    """
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.flatten(1).square().sum(1).mean()


def gradient_penalty(d: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """The mean of (‖∇d‖ - 1)² on the line between real and fake images."""
    share = torch.rand(len(real), *[1] * (real.ndim - 1), device=real.device)
    between = torch.lerp(real.detach(), fake.detach().to(real.dtype), share).requires_grad_(True)
    (gradient,) = torch.autograd.grad(d(between).sum(), between, create_graph=True)
    # sqrt has no derivative at 0, where a discriminator that is flat would give NaN.
    norm = (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()
    return (norm - 1).square().mean()


class AdversarialAutoencoder:
    """An autoencoder `ae` whose codes a discriminator `d` cannot tell from a prior, or whose images from real ones.

    `models['ae']` has `encode(x) -> z [B, ...]` and `decode(z) -> x`; `models['d']` gives one logit a code, or image.

    Args:
        loss: (reconstruction, original) -> loss.
        weight: of the adversarial term in the autoencoder's loss.
        prior: (z) -> a draw of the prior in z's shape; N(0, 1) by default.
        on: what `d` judges: `'codes'`, or `'images'`: reconstructions beside originals, which makes them sharp.

    Sources: Makhzani et al. 2016, Adversarial autoencoders; reconstruction and regularisation in one step. On images:
    Larsen et al. 2016, Autoencoding beyond pixels using a learned similarity metric, the GAN's part of equation 4.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
        *,
        weight: float = 0.1,
        prior: Callable[[Tensor], Tensor] = torch.randn_like,
        on: str = "codes",
    ) -> None:
        if on not in ("codes", "images"):
            raise ValueError(f"on must be 'codes' or 'images', not {on!r}")
        self.on = on
        check_real(weight=weight)
        self.loss, self.weight, self.prior = loss, weight, prior

    def __call__(self, key: str, models: Models, batch: Any, step: int) -> Tensor:
        """The loss of `'ae'` or `'d'`."""
        x = images(batch)
        autoencoder: Any = models["ae"]
        if key == "d":
            with torch.no_grad():
                z = autoencoder.encode(x)
                real, made = (self.prior(z), z) if self.on == "codes" else (x, autoencoder.decode(z))
            return F.softplus(-models["d"](real)).mean() + F.softplus(models["d"](made)).mean()
        if key != "ae":
            raise KeyError(f"AdversarialAutoencoder trains the models 'ae' and 'd', not {key!r}")
        z = autoencoder.encode(x)
        decoded = autoencoder.decode(z)
        reconstruction = self.loss(decoded, x)
        adversarial = F.softplus(-models["d"](z if self.on == "codes" else decoded)).mean()
        if is_logging():
            log("reconstruction", reconstruction)
            log("adversarial", adversarial)
        return reconstruction + self.weight * adversarial
