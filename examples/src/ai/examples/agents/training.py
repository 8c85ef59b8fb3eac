"""A recorded run of an agent, and what it came to."""

import time

import numpy as np
import torch
from torch import nn

from ai.examples.agents.config import AgentConfig
from ai.examples.agents.film import frames, strip
from ai.examples.agents.learner import Learner
from ai.examples.agents.worlds import world
from ai.examples.figures import save_animation
from ai.examples.run_config import open_trial
from ai.examples.saved import load_averaged
from ai.game import evaluate
from ai.lab import Video
from ai.lab.files.folder import resolve
from ai.lab.media.kept import keep_media
from ai.train import RLTrainer, Snapshots


def train(config: AgentConfig, agent: Learner) -> dict[str, float]:
    """Trains the agent, which then carries the weights of the best snapshot, and measures it.

    Returns:
        The mean return of the last measurement's episodes with its standard error (`return`, `return_sem`); `steps`,
        `episodes`; `seconds` and `steps_per_s` of training with its measurements; with a goal `solved_at`, see
        `Noted.solved_at`.
    """
    snapshots = Snapshots(resolve(config.trial) / "snapshots", keep_last=1, best_by="score", mode="max")
    interval = config.task_interval or max(1, agent.updates // 10)

    def task(model: nn.Module, step: int) -> dict[str, float]:
        found = evaluate(
            world(config.env, config.episodes), model, agent.greedy,
            episodes=config.episodes, seed=1_000_003 + config.seed, memory=agent.memory,
        )  # fmt: skip
        return {"return": float(found.mean()), "score": float(found.mean()) + 1e-9 * step}  # of equals the later

    def sampler(model: nn.Module, step: int) -> torch.Tensor:
        return strip(frames(config.env, model, agent.greedy, memory=agent.memory))

    if config.film:
        frames(config.env, agent.model, agent.greedy, memory=agent.memory, most=1)  # what cannot be filmed says so now
    trial = open_trial(
        config,
        config,
        task=task,
        sampler=sampler if config.film else None,
        save_snapshots=snapshots,
        log_interval=max(1, agent.updates // 200),
        task_interval=interval,
        sample_interval=interval,
        save_interval=interval,
    )
    source, loader = agent.source, agent.loader
    torch.manual_seed(config.seed)  # what a loss draws; a resumed run goes on with the state that was saved
    step = trial.resume(agent.model, agent.optimiser, loader) if config.resume else 0
    began, before = time.monotonic(), source.source.n_steps if step else 0
    step = RLTrainer(agent.loss, loader, push_interval=None).train(
        agent.model, agent.optimiser, trial.hook(),
        step=step, steplimit=agent.updates, timelimit=config.timelimit, schedule=agent.schedule,
    )  # fmt: skip
    seconds = time.monotonic() - began
    load_averaged(agent.model, trial, snapshots.best())
    found = evaluate(
        world(config.env, min(20, config.final_episodes)), agent.model, agent.greedy,
        episodes=config.final_episodes, seed=2_000_003, memory=agent.memory,
    )  # fmt: skip
    np.savetxt(trial.path / "episodes.csv", source.episodes, "%.10g", ",", header="steps,return", comments="")
    if config.film:
        pictures = frames(config.env, agent.model, agent.greedy, memory=agent.memory)
        film = np.stack([picture[::2, ::2] for picture in pictures[::2]])
        save_animation(trial.path / "agent.gif", list(film), fps=25)
        keep_media(trial.path, step, "agent", Video(film, fps=25), replace=True)  # the page plays it; the run has ended
    result = {
        "return": float(found.mean()),
        "return_sem": float(found.std() / len(found) ** 0.5),
        "steps": float(source.source.n_steps),
        "episodes": float(len(source.episodes)),
        "seconds": round(seconds, 1),
        "steps_per_s": round((source.source.n_steps - before) / seconds, 1),
    }
    if config.goal is not None:
        result["solved_at"] = source.solved_at(config.goal)
    print(", ".join(f"{name} {value:g}" for name, value in result.items()))
    recorded = trial.metrics()
    trial.plot([key for key in ("data_return", "return") if key in recorded])
    return result
