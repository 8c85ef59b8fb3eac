"""PPO on Pong from frames, for a few minutes: how fast it goes and how far it gets."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from gpu_parts.machine import Job, Machine, Row


def rows(machine: Machine) -> Iterator[Job]:
    """One run of the preset, cut off by time."""
    minutes = 0.02 if machine.quick else 5.0
    yield Job(f"PPO, {minutes:g} minutes", partial(learnt, machine, minutes), 60 * minutes + 30)


def learnt(machine: Machine, minutes: float) -> Row:
    """What the run says at its end."""
    from ai.examples.ppo.main import PRESETS, run

    config = PRESETS["tiny" if machine.quick else "pong"]
    with tempfile.TemporaryDirectory() as folder:
        found = run(replace(config, device=str(machine.device), timelimit=60 * minutes, trial=f"{folder}/trial"))
    return {key: value for key, value in found.items() if isinstance(value, float)}
