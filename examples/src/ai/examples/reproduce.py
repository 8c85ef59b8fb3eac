"""Runs a published result again: `python -m ai.examples.reproduce NAME [--option value …]`, `--list` for the names.

A result is a function with keyword options (at least `seed`) that trains, measures, draws its pictures into a trial's
folder and returns the numbers. It is registered by one line in `RESULTS`.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ai.examples.cli import listing, refuse_unknown, told


@dataclass(frozen=True)
class Result:
    """A published result: `module:function`, and one line on what it shows, so that listing them imports nothing."""

    target: str
    description: str

    def load(self) -> Callable[..., dict[str, float]]:
        """Imports and returns the function."""
        module, _, function = self.target.partition(":")
        return getattr(import_module(module), function)  # type: ignore[no-any-return]


RESULTS: dict[str, Result] = {
    "autoencoder": Result("ai.examples.autoencoder.main:reproduce", "held-out digits in 32 numbers each, beside PCA"),
    "autoencoder-losses": Result(
        "ai.examples.autoencoder.compare:reproduce", "pixel, SSIM and perceptual loss compared"
    ),
    "gpt": Result("ai.examples.gpt.main:reproduce", "bits per character on Python's documentation, beside xz -9"),
    "vit": Result("ai.examples.vit.main:reproduce", "accuracy on the last 360 digits of the stored order"),
    "diffusion": Result("ai.examples.diffusion.main:reproduce_points", "samples of 8 gaussians, by an MLP"),
    "diffusion-digits": Result("ai.examples.diffusion.main:reproduce_digits", "digits told their class, by a UNet"),
    "stylegan2": Result("ai.examples.stylegan2.main:reproduce", "digits of 16 pixels, their distance to real ones"),
    "tictactoe": Result("ai.examples.alphazero.main:reproduce", "AlphaZero: no lost line, all positions right"),
    "connect4": Result(
        "ai.examples.alphazero.main:reproduce_connect4", "AlphaZero beside a solver, MCTSBot and its own past"
    ),
    "play-net": Result("ai.examples.play.nets:reproduce", "AlphaZero: a network that ships with `ai-examples play`"),
    "tictactoe-muzero": Result("ai.examples.muzero.main:reproduce", "MuZero, which learns the rules: no lost line"),
    "cartpole-muzero": Result("ai.examples.muzero.main:reproduce_cartpole", "mean return over 100 episodes"),
    "hog-muzero": Result(
        "ai.examples.muzero.main:reproduce_hog", "stochastic MuZero, which learns dice too, beside the best player"
    ),
    "hog-noise": Result(
        "ai.examples.muzero.noise:reproduce", "what a search of luck adds to values that are not exact"
    ),
    "2048": Result("ai.examples.twenty48:reproduce", "2048 by a search of luck on values of an n-tuple network"),
    "point-mass": Result(
        "ai.examples.sampled_muzero.main:reproduce", "Sampled MuZero: what a mass on a line costs, beside the least"
    ),
    "cartpole-ppo": Result("ai.examples.ppo.main:reproduce", "PPO: mean return over 100 episodes, steps until solved"),
    "cartpole-hidden-ppo": Result("ai.examples.ppo.main:reproduce_hidden", "PPO with an LSTM, which sees no speeds"),
    "lunarlander-ppo": Result("ai.examples.ppo.main:reproduce_lunarlander", "PPO on LunarLander; needs box2d"),
    "pong-ppo": Result("ai.examples.ppo.main:reproduce_pong", "PPO on Pong from frames; wants a GPU"),
    "cartpole-dqn": Result("ai.examples.dqn.main:reproduce", "DQN: mean return over 100 episodes"),
    "pendulum-sac": Result("ai.examples.sac.main:reproduce", "SAC: mean return over 100 episodes"),
    "agent-curves": Result("ai.examples.agents.curves:reproduce", "learning curves over seeds of one of these three"),
    "datagen-soak": Result("ai.examples.datagen_soak:reproduce", "20 minutes of generated data under random kills"),
    "agent-kills": Result(
        "ai.examples.agent_kills:reproduce", "a learning agent killed again and again, to the same bits"
    ),
    "data-kills": Result("ai.examples.data_kills:reproduce", "SIGKILL of workers, parents and builds of image packs"),
    "larger-data": Result(
        "ai.examples.larger_data:reproduce", "a file larger than a limit of memory, read in blocks and flat memory"
    ),
    "lab-search": Result("ai.examples.lab_search:reproduce", "60 trials × 3 seeds, killed at random, to the same end"),
    "ray-chaos": Result(
        "ai.examples.ray_chaos:reproduce", "a search on a Ray cluster: workers, machines, driver killed"
    ),
    "ray-failures": Result(
        "ai.examples.ray_failures:reproduce", "what goes wrong on a Ray cluster: when it is said, how"
    ),
    "picture-damage": Result(
        "ai.examples.picture_faults:reproduce_damage", "2,000 damaged files of each of six formats, read or refused"
    ),
    "picture-table": Result(
        "ai.examples.picture_faults:reproduce_table", "Pillow's test pictures: read, refused, different, and why"
    ),
    "lab-growth": Result("ai.examples.lab_growth:reproduce", "what lists, long runs and prints cost as they grow"),
    "disk-faults": Result("ai.examples.disk_faults:reproduce", "training on a disk that fills up or becomes read-only"),
    "infer-kills": Result("ai.examples.infer_faults:reproduce_kills", "a worker killed 50 times under 64 clients"),
    "infer-storm": Result("ai.examples.infer_faults:reproduce_storm", "100 new versions of the weights a second"),
    "infer-idle": Result("ai.examples.infer_faults:reproduce_idle", "what 1,000 idle clients of one worker take"),
    "infer-soak": Result("ai.examples.infer_soak:reproduce", "20 M requests in flat memory, clients killed meanwhile"),
}


def main() -> None:
    """Runs one result by its name, and writes its numbers with command, seed, time and commit."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "--list"):
        described = {name: result.description for name, result in RESULTS.items()}
        print(f"usage: python -m ai.examples.reproduce NAME [--option value …]\n\nresults:\n{listing(described)}")
        return
    name, *rest = arguments
    if name not in RESULTS:
        refuse_unknown("reproduce", "result", name, list(RESULTS))
    with told("reproduce"):
        run(name, rest)


def run(name: str, options: Sequence[str]) -> None:
    """Measures the result of a name; what it gives is printed, and kept in the lab's root.

    Raises:
        LabPathError: Nothing can be kept there; this is known before hours of work.
    """
    import tyro

    from ai.lab.files.folder import lab_folder

    path = lab_folder("reproduce") / f"{name}.json"
    started = time.monotonic()
    function = RESULTS[name].load()
    numbers = tyro.cli(function, args=options, prog=f"reproduce {name}")
    record = {
        "name": name,
        "command": " ".join(["python -m ai.examples.reproduce", name, *options]),
        "numbers": numbers,
        "seconds": round(time.monotonic() - started, 1),
        **surroundings(),
    }
    print(json.dumps(record, indent=2))
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def surroundings() -> dict[str, str | int]:
    """Returns what a number depends on besides the code: commit, versions, processor and threads."""
    import torch

    return {
        "commit": _git("rev-parse", "HEAD") + (" with changes" if _git("status", "--porcelain", "-uno") else ""),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "threads": torch.get_num_threads(),
    }


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # an installed wheel, or no git
        return ""


if __name__ == "__main__":
    main()
