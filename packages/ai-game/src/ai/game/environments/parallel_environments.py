"""Parallel environments of PettingZoo: every agent a row of one shared policy."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game import draws
from ai.game.arguments import check_count
from ai.game.environments.protocol import BEGIN, Seen, Step
from ai.game.environments.spaces import ActionSpace, Observations, check_mask


class ParallelEnvironments:
    """Instances of a PettingZoo parallel environment: `num` instances of P agents are `num` · P rows.

    One policy acts for all agents, so they must see and do the same kinds of things. An agent that is done before the
    others waits for them; its rows until then are no part of any episode. A dict of `observation` and `action_mask` is
    seen as `obs` and `legal`.

    Like `VectorEnvironments` it has no state.

    Args:
        make: gives one instance.
        num: instances.

    Raises:
        ValueError: agents differ in what they see or do; at `reset` and `step`, an episode begins without some of them,
            or `make` gave one instance twice; at `step`, agents that are done stay among `agents` or come back, one
            goes from there without being done, or the environment does not tell of one that acted.
    """

    def __init__(self, make: Callable[[], Any], num: int) -> None:
        check_count(1, num=num)
        self._make, self.instances = make, num
        self._envs: list[Any] = [make()]
        self._begun = False
        first = self._envs[0]
        self.agents: list[Any] = list(first.possible_agents)
        kinds = [(first.observation_space(a), first.action_space(a)) for a in self.agents]
        if other := [agent for agent, kind in zip(self.agents, kinds, strict=True) if kind != kinds[0]]:
            raise ValueError(
                f"agents must share one space of observations and one of actions, those of {other} are not those of "
                f"{self.agents[0]!r}"
            )
        self.num = num * len(self.agents)
        self._observations, self._actions = Observations(kinds[0][0]), ActionSpace(kinds[0][1])
        check_mask(False, self._observations, self._actions)
        self.observation_shape = self._observations.shape
        self.num_actions, self.action_shape = self._actions.num_actions, self._actions.shape

    def reset(self, seed: int) -> Seen:
        """Begins an episode in every instance."""
        while len(self._envs) < self.instances:
            made = self._make()
            if any(_bare(made) is _bare(other) for other in self._envs):
                raise ValueError("make must give another instance each time, it returned the same one again")
            self._envs.append(made)
        self._seeds, self._number = draws.row_seeds(seed, self.instances), np.zeros(self.instances, np.int64)
        self._seen = {name: np.zeros_like(room) for name, room in self._observations.empty(self.num).items()}
        for instance in range(self.instances):
            self._begin(instance)
        self._begun = True
        return self._shown()

    def step(self, action: NDArray[Any]) -> Step:
        """Steps every instance with an agent left, and begins the others anew."""
        if not self._begun:
            raise RuntimeError(BEGIN)
        taken = self._actions(action, self.num)
        own: Any = taken.tolist() if self.num_actions is not None else taken
        reward, ended, cut = np.zeros(self.num, np.float32), np.zeros(self.num, bool), np.zeros(self.num, bool)
        for instance, env in enumerate(self._envs):
            if not env.agents:
                self._number[instance] += 1
                self._begin(instance)
                continue
            live = list(env.agents)
            rows = {agent: self._row(instance, agent) for agent in self.agents}
            told = env.step({agent: own[rows[agent]] for agent in live})
            shown, rewards, ends, cuts, _ = told
            for what, of_each in zip(("observations", "rewards", "terminations", "truncations"), told, strict=False):
                if missing := [agent for agent in live if agent not in of_each]:
                    raise ValueError(
                        f"{what} must tell of all agents that acted, also at their end, {missing} are missing"
                    )
            self._check_leaving(env.agents, {agent for agent in live if not (ends[agent] or cuts[agent])})
            for agent, row in rows.items():
                if agent not in live:
                    ended[row] = True  # still waiting for the others
                    continue
                self._note(row, shown[agent])
                reward[row] = rewards[agent]
                ended[row], cut[row] = ends[agent], cuts[agent] and not ends[agent]
        return self._shown(), reward, ended, cut

    def _check_leaving(self, agents: list[Any], going_on: set[Any]) -> None:
        """Refuses an instance whose `agents` are not those that go on: when an episode is over would be a guess."""
        if left := [agent for agent in agents if agent not in going_on]:
            raise ValueError(f"agents that are terminated or truncated must be gone from agents, {left} are there")
        if gone := sorted(map(str, going_on.difference(agents))):
            raise ValueError(f"agents must be terminated or truncated when they go from agents, {gone} are neither")

    def _row(self, instance: int, agent: Any) -> int:
        return instance * len(self.agents) + self.agents.index(agent)

    def _begin(self, instance: int) -> None:
        rows = slice(instance, instance + 1)
        seed = draws.fold_in(self._seeds[rows], self._number[rows])[0] % np.uint64(1 << 31)
        shown, _ = self._envs[instance].reset(seed=int(seed))
        if missing := [agent for agent in self.agents if agent not in shown]:
            raise ValueError(f"an episode must begin with all of possible_agents, {missing} are not there after reset")
        for agent in self.agents:
            self._note(self._row(instance, agent), shown[agent])

    def _note(self, row: int, shown: Any) -> None:
        for name, value in self._observations.named(shown).items():
            self._seen[name][row] = value

    def _shown(self) -> Seen:
        seen = {name: values.copy() for name, values in self._seen.items()}
        return seen if self._observations.is_dict else seen["obs"]

    def __getstate__(self) -> dict[str, Any]:
        """Instances stay behind: a copy makes its own."""
        return {**self.__dict__, "_envs": [], "_begun": False}


def _bare(env: Any) -> Any:
    return getattr(env, "unwrapped", env)
