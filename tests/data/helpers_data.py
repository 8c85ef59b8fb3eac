"""Sources and waits that several tests share."""

import os
import time

import numpy as np


class Walk:
    """Episodes of random steps: `obs` counts the steps of this worker, `w` is the parameter it was made with."""

    def __init__(self, n_steps=4):
        self.n_steps = n_steps
        self.weight = 0.0
        self.made = 0

    def start(self, seed, worker):
        self.rng = np.random.default_rng(seed)
        self.worker = worker

    def __next__(self):
        n = self.n_steps
        self.made += 1
        return {
            "obs": np.arange(n + 1)[:, None] + self.made * 100,
            "action": self.rng.integers(0, 1 << 30, n),
            "reward": np.ones(n, np.float32),
            "w": np.float64(self.weight),
        }

    def update_params(self, state_dict, version):
        self.weight = float(state_dict["w"])

    def state_dict(self):
        return {"rng": self.rng.bit_generator.state, "made": self.made, "weight": self.weight}

    def load_state_dict(self, state):
        self.rng.bit_generator.state = state["rng"]
        self.made, self.weight = state["made"], state["weight"]


def is_running(pid):
    """Returns whether a process runs: not gone, not a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, timeout_s=100):
    """Returns once `condition()` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        os.sched_yield()
