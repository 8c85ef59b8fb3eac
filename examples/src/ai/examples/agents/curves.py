"""Learning curves over seeds: the mean in a band of one standard deviation, no further than any seed came.

Command: `python -m ai.examples.reproduce agent-curves --kind cartpole-ppo`.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ai.lab.files.folder import resolve
from ai.lab.report.palette import color_of
from ai.lab.report.plots import save_figure

Episodes = NDArray[np.float64]  # [n, 2]: steps and return of each finished episode, as of `Noted.episodes`
Kind = Literal["cartpole-ppo", "cartpole-dqn", "pendulum-sac"]


def last_returns(episodes: Episodes, at: NDArray[np.float64], window: int = 20) -> NDArray[np.float64]:
    """Returns the mean of the last `window` episodes that had ended after each number of steps; NaN before the first.

    >>> last_returns(np.array([[10.0, 1.0], [20.0, 3.0], [30.0, 5.0]]), np.array([5.0, 10.0, 25.0, 30.0]), window=2)
    array([nan,  1.,  2.,  4.])
    """
    ended = np.searchsorted(episodes[:, 0], at, "right")
    return np.array([episodes[max(0, n - window) : n, 1].mean() if n else np.nan for n in ended])


def band(curves: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Returns the mean of curves `[seeds, n]` and one standard deviation below and above it, but within the curves.

    >>> band(np.array([[500.0], [500.0], [410.0]]))  # no return is more than 500
    (array([470.]), array([418.03847577]), array([500.]))
    """
    mean, deviation = curves.mean(0), curves.std(0, ddof=1 if len(curves) > 1 else 0)
    return mean, np.maximum(mean - deviation, curves.min(0)), np.minimum(mean + deviation, curves.max(0))


def save_curves(path: str | Path, runs: Mapping[str, Sequence[Episodes]], *, goal: float | None = None) -> Path:
    """Draws the last returns over the steps, a line in a band for each name, and returns the path.

    Args:
        path: The picture; its ending says the format.
        runs: The episodes of each seed, by the name to show.
        goal: Drawn as a level, where there is one.
    """
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, seeds) in enumerate(runs.items()):
        at = np.linspace(0, min(episodes[-1, 0] for episodes in seeds), 200)
        curves = np.stack([last_returns(episodes, at) for episodes in seeds])
        mean, lower, upper = band(curves)
        axes.plot(at, mean, color=color_of(place), lw=1.5, label=f"{name}, {len(seeds)} seeds")
        axes.fill_between(at, lower, upper, color=color_of(place), alpha=0.2, lw=0)
    if goal is not None:
        axes.axhline(goal, color="grey", lw=0.8, ls=":")
    axes.set_xlabel("steps of the environment")
    axes.set_ylabel("return, mean of 20 episodes")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return save_figure(figure, path)


def reproduce(*, kind: Kind = "cartpole-ppo", seeds: int = 3, seed: int = 0) -> dict[str, float]:
    """Draws the curves of a result over `seeds` seeds from `seed` on; those that ran before are not run again.

    `return_min` and `return_mean` are of the seeds' last measurements, as `reproduce` gives them for each; `solved` is
    the number of seeds that came to the preset's goal in training (see `Noted.solved_at`), and `solved_at_median` the
    median of their steps, where more than half of all did.
    """
    module = import_module(f"ai.examples.{kind.rpartition('-')[2]}.main")
    again: Callable[..., dict[str, float]] = module.reproduce
    found, noted = [], []
    for one in range(seed, seed + seeds):
        trial = resolve(f"reproduce/{kind}-{one}")
        if not (trial / "result.csv").exists():
            result = again(seed=one)
            np.savetxt(trial / "result.csv", [[result["return"], result["solved_at"], result["steps_per_s"]]])
        found.append(np.loadtxt(trial / "result.csv"))
        noted.append(np.loadtxt(trial / "episodes.csv", delimiter=",", skiprows=1))
    returns, solved, rates = np.array(found).T
    goal = module.PRESETS[kind.partition("-")[0]].goal
    save_curves(resolve(f"reproduce/{kind}.png"), {kind.rpartition("-")[2].upper(): noted}, goal=goal)
    numbers = {
        "return_min": float(returns.min()),
        "return_mean": float(returns.mean()),
        "solved": float(np.isfinite(solved).sum()),
        "steps_per_s_median": float(np.median(rates)),
    }
    median = float(np.median(np.where(np.isnan(solved), np.inf, solved)))  # who never came there takes longest
    return numbers | ({"solved_at_median": median} if np.isfinite(median) else {})
