"""How self-play games are played."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ai.game.arguments import check_amount, check_count
from ai.game.search.rules.rule import Rule


@dataclass(frozen=True)
class Play:
    """How self-play games are played.

    Args:
        games: how many run side by side, in lock-step.
        simulations: of a full search.
        rule: of the search; None as in `Search`.
        fast_simulations: of the other searches, which play on but teach the policy little (playout-cap randomisation).
        full_share: share of moves with a full search; 1 for all.
        temperature: exponent 1 / temperature on the policy, for the first `temperature_moves` moves of a game.
        temperature_moves: after so many, `late_temperature` holds.
        late_temperature: 0 plays the search's own choice.
        tolerance: None for episodes without `greedy_return`. A move whose value, by the search, falls short of the best
            one's by more than this explores: what follows it says little about the position before.
        random_share: share of moves that are drawn from all legal ones, so that games also lead through positions that
            good play avoids; best with a `tolerance`.
        opening_share: share of games that start from a random position.
        opening_moves: how many random moves lead there, drawn from `[0, opening_moves)`.
        max_moves: a game that goes on for longer ends there, as `at_limit` says.
        at_limit: `'truncate'` cuts the episode off, so that its last position keeps a value; `'draw'` ends it with
            what it has earned.
        resign_below: give a game up when its value for the mover is lower, which loses it by 1; None never.
        resign_check: share of games that are played out all the same, to count how often giving up was wrong.
        cache: positions whose evaluation is remembered until the parameters change; 0 for none.
    """

    games: int = 64
    simulations: int = 32
    rule: Rule | None = None
    fast_simulations: int = 8
    full_share: float = 1.0
    temperature: float = 1.0
    temperature_moves: int = 1_000_000
    late_temperature: float = 0.0
    tolerance: float | None = None
    random_share: float = 0.0
    opening_share: float = 0.0
    opening_moves: int = 1
    max_moves: int = 10_000
    at_limit: Literal["truncate", "draw"] = "truncate"
    resign_below: float | None = None
    resign_check: float = 0.1
    cache: int = 0

    def __post_init__(self) -> None:
        counts = ("games", "simulations", "fast_simulations", "opening_moves", "max_moves")
        check_count(1, **{name: getattr(self, name) for name in counts})
        check_count(0, temperature_moves=self.temperature_moves, cache=self.cache)
        if self.at_limit not in ("truncate", "draw"):
            raise ValueError(f"at_limit must be 'truncate' or 'draw', got {self.at_limit!r}")
        shares = ("full_share", "random_share", "opening_share", "resign_check")
        check_amount(0, 1, **{name: getattr(self, name) for name in shares})
        check_amount(0, finite=False, temperature=self.temperature, late_temperature=self.late_temperature)
        if self.tolerance is not None:
            check_amount(0, finite=False, tolerance=self.tolerance)
        if self.resign_below is not None:
            check_amount(None, finite=False, resign_below=self.resign_below)
        if self.rule is not None and not isinstance(self.rule, Rule):
            raise TypeError(f"rule must be a Rule, such as Puct(), got {self.rule}")
        if self.full_share < 1 and self.fast_simulations > self.simulations:
            raise ValueError(
                f"fast_simulations ({self.fast_simulations}) must not exceed simulations ({self.simulations})"
            )
