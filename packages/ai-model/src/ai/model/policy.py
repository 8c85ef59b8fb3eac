"""What a policy's head says, as tuples of tensors that sample, score and weigh actions.

Letters: A actions of a choice, or axes of a movement; any leading axes are rows. A tuple of tensors passes through
compile, autocast and hooks as it is, and has no state of its own: draws come from the generator that is given.
"""

import math
from contextlib import suppress
from inspect import signature
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ai.model.wide import widened

_BEYOND = 1.001  # what no rounding makes of 1, in half precision neither


class Policy(Protocol):
    """A distribution over actions, one for each row.

    Attributes:
        width: how many numbers `at` makes an action of, `W`.
    """

    @property
    def width(self) -> int:
        """Returns W."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Returns one action a row; None draws from torch's global generator."""

    def at(self, uniform: Tensor) -> Tensor:
        """Returns the actions at numbers in (0, 1), `(K, …, W)`: K a row, whose luck is that of the numbers alone."""

    def mode(self) -> Tensor:
        """Returns the action to take where nothing is to be explored."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Returns the logarithm of each action's probability or density, one a row; of K actions a row `(K, …)`."""

    def entropy(self) -> Tensor:
        """Returns the entropy in nats, one number a row."""


def check_acts(said: Any, also: tuple[str, ...] = ("value",)) -> None:
    """Does nothing where a model gave a policy and what is to stand beside it.

    Raises:
        TypeError: it gave something else, such as values of actions or a policy alone, whose parts are a tuple too.

    >>> check_acts((Categorical(torch.zeros(1, 2)), torch.zeros(1)))
    """
    if not isinstance(said, tuple | list) or len(said) <= len(also) or not hasattr(said[0], "log_prob"):
        parts = f" of {', '.join(type(part).__name__ for part in said)}" if type(said) in (tuple, list) else ""
        raise TypeError(f"the model must give (policy, {', '.join(also)}), got {type(said).__name__}{parts}")


def asked(model: Any, *given: Tensor) -> Any:
    """What a model says of `obs`, or of `obs` and `memory`.

    Raises:
        TypeError: it takes a memory and is given none, or the contrary.

    >>> asked(lambda obs: obs + 1, torch.zeros(1))
    tensor([1.])
    """
    try:
        return model(*given)
    except TypeError as error:
        with suppress(ValueError):  # of what tells no signature
            takes = signature(getattr(model, "forward", model))
            try:
                takes.bind(*given)
            except TypeError:
                had, fix = ("obs alone", "a shape") if len(given) == 1 else ("obs and memory", "None")
                raise TypeError(
                    f"the model takes {takes}, it was given {had}: memory, of Rollouts and evaluate, must be {fix}"
                ) from error
        raise


class Categorical(NamedTuple):
    """One of A actions, from `logits` `(…, A)`; actions are `(…)` int64.

    >>> policy = Categorical(torch.tensor([[0.0, math.log(3.0)]]))
    >>> policy.mode(), policy.log_prob(torch.tensor([1])).exp()
    (tensor([1]), tensor([0.7500]))
    """

    logits: Tensor

    def among(self, legal: Tensor) -> "Categorical":
        """Returns the policy restricted to the actions where `legal` `(…, A)` is true; where none is, uniform.

        Raises:
            ValueError: `legal` has neither the shape of the logits nor `(A,)`.

        >>> Categorical(torch.zeros(1, 3)).among(torch.tensor([[True, False, True]])).logits.softmax(-1)
        tensor([[0.5000, 0.0000, 0.5000]])
        """
        logits = widened(self.logits)
        lowest = torch.finfo(logits.dtype).min
        if legal.shape not in (logits.shape, logits.shape[-1:]):  # another might spread over the wrong axis in silence
            wanted = tuple(logits.shape)
            raise ValueError(f"legal must have shape {wanted} or {wanted[-1:]}, got {tuple(legal.shape)}")
        return Categorical(
            torch.where(legal.bool(), logits.clamp_min(lowest / 2), lowest)
        )  # a legal -inf is above an illegal

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """`(…)` int64: the winner of a race of exponential times."""
        chance = widened(self.logits).softmax(-1)
        time = torch.empty_like(chance).exponential_(generator=generator)
        # A time of 0, which some devices draw, would let an action of no chance win: 0 / 0 is NaN, the greatest.
        return (chance / time.clamp_min_(torch.finfo(time.dtype).tiny)).argmax(-1)

    @property
    def width(self) -> int:
        """One number makes a choice."""
        return 1

    def at(self, uniform: Tensor) -> Tensor:
        """`(K, …)` int64 from `(K, …, 1)`.

        >>> Categorical(torch.tensor([[0.0, math.log(3.0)]])).at(torch.tensor([[[0.2]], [[0.3]]]))
        tensor([[0],
                [1]])
        """
        uniform = _inside(uniform, (*self.logits.shape[:-1], 1))
        reached = widened(self.logits).double().softmax(-1).cumsum(-1)
        return (uniform * reached[..., -1:] >= reached).sum(-1)

    def mode(self) -> Tensor:
        """The likeliest action."""
        return self.logits.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """`(…)`.

        Raises:
            ValueError: there is not one action for each row of logits, nor K on a first axis of their own.
        """
        wanted = self.logits.shape[:-1]
        if action.shape not in (wanted, (*action.shape[:1], *wanted)):
            raise ValueError(f"action must have one entry a row, shape {tuple(wanted)}, got {tuple(action.shape)}")
        log_p = widened(self.logits).log_softmax(-1)
        if action.ndim > len(wanted):
            log_p = log_p.expand(*action.shape, -1)
        return log_p.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """`(…)`."""
        log_p = widened(self.logits).log_softmax(-1)
        return -(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1)  # 0 · log 0 counts as 0


class Gaussian(NamedTuple):
    """Independent normals: `mean` `(…, A)`, `log_std` of that shape or `(A,)`; actions are `(…, A)`, unbounded.

    >>> policy = Gaussian(torch.zeros(5, 2), torch.zeros(2))
    >>> policy.sample().shape, round(float(policy.entropy()[0]), 4)
    (torch.Size([5, 2]), 2.8379)
    """

    mean: Tensor
    log_std: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """`(…, A)`; gradients flow through it to both parameters."""
        mean = widened(self.mean)
        return mean + widened(self.log_std).exp() * torch.empty_like(mean).normal_(generator=generator)

    @property
    def width(self) -> int:
        """A."""
        return self.mean.shape[-1]

    def at(self, uniform: Tensor) -> Tensor:
        """`(K, …, A)` from as many numbers; in double precision they reach further out.

        >>> Gaussian(torch.ones(1, 1), torch.zeros(1)).at(torch.tensor([[[0.5]], [[0.975]]])).flatten()
        tensor([1.0000, 2.9600])
        """
        mean = widened(self.mean)
        normal: Tensor = torch.special.ndtri(_inside(uniform, mean.shape))
        return mean + widened(self.log_std).exp() * normal.to(mean.dtype)

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """`(…)`: the density of all axes together.

        Raises:
            ValueError: actions have other axes. There may be several for each row, never one for several rows.
        """
        fits = zip(action.shape[::-1], self.mean.shape[::-1], strict=False)
        if (
            action.ndim < self.mean.ndim
            or action.shape[-1:] != self.mean.shape[-1:]
            or any(n not in (1, a) for a, n in fits)
        ):
            raise ValueError(f"action must have shape {tuple(self.mean.shape)}, got {tuple(action.shape)}")
        log_std = widened(self.log_std)
        z = (action - widened(self.mean)) * (-log_std).exp()
        return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """`(…)`."""
        log_std = widened(self.log_std)
        return (log_std + 0.5 * math.log(2 * math.pi * math.e)).expand_as(self.mean).sum(-1)


class SquashedGaussian(NamedTuple):
    """tanh of a `Gaussian`, in (-1, 1).

    Source: Haarnoja et al., 2018, Soft actor-critic algorithms and applications, appendix C.

    >>> action, log_prob = SquashedGaussian(torch.zeros(5, 2), torch.zeros(5, 2)).sample_with_log_prob()
    >>> action.shape, log_prob.shape, bool((action.abs() < 1).all())
    (torch.Size([5, 2]), torch.Size([5]), True)
    """

    mean: Tensor
    log_std: Tensor

    def sample_with_log_prob(self, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """`(…, A)` and `(…)`: scored by the number before tanh, which near ±1 no action gives back exactly."""
        normal = Gaussian(self.mean, self.log_std)
        raw = normal.sample(generator)
        return raw.tanh(), normal.log_prob(raw) - _log_slope(raw).sum(-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """`(…, A)`; gradients flow through it."""
        return Gaussian(self.mean, self.log_std).sample(generator).tanh()

    @property
    def width(self) -> int:
        """A."""
        return self.mean.shape[-1]

    def at(self, uniform: Tensor) -> Tensor:
        """`(K, …, A)` from as many numbers."""
        return Gaussian(self.mean, self.log_std).at(uniform).tanh()

    def mode(self) -> Tensor:
        """The mean's tanh."""
        return self.mean.tanh()

    def log_prob(self, action: Tensor) -> Tensor:
        """`(…)`; an action of ±1 is scored just inside, where it still has a density; one beyond, rounding apart, -inf.

        >>> SquashedGaussian(torch.zeros(2, 1), torch.zeros(2, 1)).log_prob(torch.tensor([[0.0], [2.0]]))
        tensor([-0.9189,    -inf])
        """
        exact = widened(action)
        edge = 1 - torch.finfo(exact.dtype).eps
        raw = exact.clamp(-edge, edge).atanh()
        density = Gaussian(self.mean, self.log_std).log_prob(raw) - _log_slope(raw).sum(-1)
        return torch.where((exact.abs() > _BEYOND).any(-1), -torch.inf, density)

    def entropy(self) -> Tensor:
        """`(…)`: an estimate from one sample, since no formula is known; its gradient is unbiased too."""
        return -self.sample_with_log_prob()[1]


class Mixed(NamedTuple):
    """Several independent policies at once, such as a choice and a movement.

    An action has the parts' entries side by side on its last axis: one for a `Categorical`, A for the others. It is
    int64 where every part is a `Categorical`, else float32.

    >>> both = Mixed((Categorical(torch.zeros(5, 3)), Gaussian(torch.zeros(5, 2), torch.zeros(2))))
    >>> both.sample().shape, both.log_prob(both.sample()).shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    parts: tuple[Categorical | Gaussian | SquashedGaussian, ...]

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """`(…, sum of the parts' entries)`."""
        return self._joined([part.sample(generator) for part in self.parts])

    @property
    def width(self) -> int:
        """The sum of the parts'."""
        return sum(part.width for part in self.parts)

    def at(self, uniform: Tensor) -> Tensor:
        """`(K, …, sum of the parts' entries)` from as many numbers."""
        own = torch.split(uniform, [part.width for part in self.parts], -1)
        return self._joined([part.at(numbers) for part, numbers in zip(self.parts, own, strict=True)])

    def mode(self) -> Tensor:
        """The parts' modes."""
        return self._joined([part.mode() for part in self.parts])

    def log_prob(self, action: Tensor) -> Tensor:
        """`(…)`: the sum over the parts."""
        widths = [part.width for part in self.parts]
        if action.shape[-1:] != (sum(widths),):
            raise ValueError(
                f"action must have {sum(widths)} entries on its last axis, got shape {tuple(action.shape)}"
            )
        total = torch.zeros(action.shape[:-1], device=action.device)
        for part, own in zip(self.parts, torch.split(action, widths, -1), strict=True):
            total = total + part.log_prob(own.squeeze(-1) if isinstance(part, Categorical) else own)
        return total

    def entropy(self) -> Tensor:
        """`(…)`: the sum over the parts."""
        return torch.stack([part.entropy() for part in self.parts]).sum(0)

    def _joined(self, actions: list[Tensor]) -> Tensor:
        choices = [isinstance(part, Categorical) for part in self.parts]
        columns = [a.unsqueeze(-1) if choice else a for a, choice in zip(actions, choices, strict=True)]
        return torch.cat(columns if all(choices) else [column.to(torch.float32) for column in columns], -1)


def _inside(uniform: Tensor, row: tuple[int, ...]) -> Tensor:
    """Returns numbers that rounding left at 0 or 1 just inside, where every policy has an action.

    Raises:
        ValueError: they are not K for each row.
    """
    if uniform.shape[1:] != row or uniform.ndim == 0:
        raise ValueError(f"uniform must have shape (K, {', '.join(map(str, row))}), got {tuple(uniform.shape)}")
    limits = torch.finfo(uniform.dtype)
    return uniform.clamp(limits.tiny, 1 - limits.eps / 2)


def _log_slope(raw: Tensor) -> Tensor:
    """Returns log(1 - tanh²x) without cancellation."""
    return 2 * (math.log(2) - raw - F.softplus(-2 * raw))
