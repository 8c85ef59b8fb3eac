"""Representation, dynamics and prediction as perceptrons.

Source: Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned model": figure 1;
appendix F, values and rewards as probabilities over a support. Embeddings are layer-normalised: scaled to [0, 1] as in
appendix G, rewards learnt alone missed three times as many of the moves that win at tic-tac-toe.
"""

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ai.model as m
from ai.train import Support


class Model(m.Model):
    """A learned model of a game, as `ai.train.MuZero` trains it and `ai.game.Search.learned` searches it.

    Args:
        shape_in: of one observation.
        n_actions: A; of movements, their axes.
        continuous: whether an action is a movement in [-1, 1] along each axis, for `Search.sampled`.
        discount: of the next value, -1 where two players take turns.
        dim: width.
        dim_state: of the embedding.
        support_size: of values and rewards; see `ai.train.Support`.
    """

    def __init__(
        self,
        shape_in: tuple[int, ...] = (2, 3, 3),
        n_actions: int = 9,
        *,
        continuous: bool = False,
        discount: float = -1.0,
        dim: int = 128,
        dim_state: int = 64,
        support_size: int = 5,
    ) -> None:
        super().__init__()
        self.n_actions, self.continuous, self.discount = n_actions, continuous, discount
        self.support = Support(support_size)
        bins = 2 * support_size + 1
        self.encode = m.seq(m.flatten(), m.fc(prod(shape_in), dim, actv="relu"), m.fc(dim, dim_state))
        self.move = m.seq(
            m.fc(dim_state + n_actions, dim, actv="relu"), m.fc(dim, dim, actv="relu"), m.fc(dim, dim_state)
        )
        self.reward = m.seq(m.fc(dim_state + n_actions, dim, actv="relu"), m.fc(dim, bins))
        self.norm = m.norm.layer(dim_state, affine=False)
        self.trunk = m.fc(dim_state, dim, actv="relu")
        self.policy = m.fc(dim, 2 * n_actions if continuous else n_actions)
        self.value = m.fc(dim, bins)

    def represent(self, obs: Tensor) -> Tensor:
        """Returns the embedding `(batch, dim_state)`, of mean 0 and variance 1, of what is seen."""
        state: Tensor = self.norm(self.encode(obs.to(next(self.encode.parameters()).dtype)))  # frames are bytes
        return state

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the next embedding and the reward's logits `(batch, bins)`."""
        done = action if self.continuous else F.one_hot(action.long(), self.n_actions)
        x = torch.cat([state, done.to(state.dtype)], dim=1)
        return self.norm(state + self.move(x)), self.reward(x)

    def predict(self, state: Tensor) -> tuple[Any, Tensor]:
        """Returns policy logits `(batch, A)`, or the policy of movements, and the value's logits `(batch, bins)`."""
        h = self.trunk(state)
        said = self.policy(h)
        if not self.continuous:
            return said, self.value(h)
        mean, log_std = said.chunk(2, 1)
        return m.SquashedGaussian(mean, log_std.clamp(-4, 1)), self.value(h)

    def forward(self, obs: Tensor) -> tuple[Any, Tensor]:
        """Returns policy logits, or the policy, and values `(batch,)`, without search."""
        policy, value = self.predict(self.represent(obs))
        return policy, self.support.to_scalar(value)

    def initial(self, observation: Tensor) -> tuple[Tensor, Any, Tensor]:
        """Returns embedding, logits or policy, and value of a root."""
        state = self.represent(observation)
        policy, value = self.predict(state)
        return state, policy, self.support.to_scalar(value)

    def recurrent(self, embedding: Tensor, action: Any) -> tuple[Tensor, Tensor, Tensor, Any, Tensor]:
        """Returns the next embedding, reward, discount, logits or policy, and value."""
        state, reward = self.dynamics(embedding, torch.as_tensor(action, device=embedding.device))
        policy, value = self.predict(state)
        discount = torch.full((len(state),), self.discount, device=state.device)
        return state, self.support.to_scalar(reward), discount, policy, self.support.to_scalar(value)
