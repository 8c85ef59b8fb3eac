"""A model whose luck is learnt too: actions lead to afterstates, and codes tell what came about there.

Source: Antonoglou et al. 2022, "Planning in stochastic environments with a learned model": section 4.1 and figure 2.
The encoder sees the two observations between which luck moved. Its scores are normalised over the batch before they are
made probabilities, so that every code is used: without, a few updates leave one or two codes for all that can happen.
"""

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ai.model as m
from ai.examples.muzero.model import Model

SHARPNESS = 2.0  # of the scores of codes


class LuckModel(Model):
    """A `Model` of a game with luck, as `ai.train.MuZero` trains it and `ai.game.Search.learned` searches it.

    Args:
        shape_in: of one observation.
        n_actions: A.
        num_codes: C, how many outcomes can be told apart after an action.
        discount: of the next value, -1 where two players take turns.
        dim: width.
        dim_state: of embeddings and afterstates.
        support_size: of values and rewards; see `ai.train.Support`.
    """

    def __init__(
        self,
        shape_in: tuple[int, ...],
        n_actions: int,
        *,
        num_codes: int = 32,
        discount: float = -1.0,
        dim: int = 128,
        dim_state: int = 64,
        support_size: int = 5,
    ) -> None:
        super().__init__(
            shape_in, n_actions, discount=discount, dim=dim, dim_state=dim_state, support_size=support_size
        )
        self.num_codes = num_codes
        bins = 2 * support_size + 1
        self.move = m.seq(
            m.fc(dim_state + num_codes, dim, actv="relu"), m.fc(dim, dim, actv="relu"), m.fc(dim, dim_state)
        )
        self.reward = m.seq(m.fc(dim_state + num_codes, dim, actv="relu"), m.fc(dim, bins))
        self.act = m.seq(m.fc(dim_state + n_actions, dim, actv="relu"), m.fc(dim, dim_state))
        self.foresee = m.seq(m.fc(dim_state, dim, actv="relu"), m.fc(dim, num_codes))
        self.worth = m.seq(m.fc(dim_state, dim, actv="relu"), m.fc(dim, bins))
        self.tell = m.seq(
            m.fc(2 * prod(shape_in), dim, actv="relu"), m.fc(dim, num_codes), m.norm.batch(num_codes, affine=False)
        )

    def afterstate_dynamics(self, state: Tensor, action: Tensor) -> Tensor:
        """Returns the afterstate `(batch, dim_state)` of an action, of mean 0 and variance 1."""
        done = F.one_hot(action.long(), self.n_actions).to(state.dtype)
        after: Tensor = self.norm(state + self.act(torch.cat([state, done], dim=1)))
        return after

    def afterstate_prediction(self, afterstate: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits of codes `(batch, C)` and the value's logits `(batch, bins)`."""
        return self.foresee(afterstate), self.worth(afterstate)

    def chance_code(self, obs: Tensor, following: Tensor) -> Tensor:
        """Returns how likely each code `(batch, C)` tells what came about between two observations."""
        both = torch.cat([obs.flatten(1), following.flatten(1)], 1).to(next(self.tell.parameters()).dtype)
        told: Tensor = self.tell(both)
        return (SHARPNESS * told).softmax(1)

    def dynamics(self, afterstate: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the next embedding and the reward's logits `(batch, bins)`; codes are numbers, or rows of C."""
        fell = F.one_hot(code.long(), self.num_codes) if code.ndim == 1 else code
        x = torch.cat([afterstate, fell.to(afterstate.dtype)], dim=1)
        return self.norm(afterstate + self.move(x)), self.reward(x)

    def afterstate(self, embedding: Tensor, action: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the afterstate, logits of its codes, and its value."""
        after = self.afterstate_dynamics(embedding, torch.as_tensor(action, device=embedding.device))
        codes, worth = self.afterstate_prediction(after)
        return after, codes, self.support.to_scalar(worth)
