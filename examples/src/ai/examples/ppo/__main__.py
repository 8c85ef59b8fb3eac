"""Runs `python -m ai.examples.ppo`."""

from ai.examples.cli import told
from ai.examples.ppo.main import main

if __name__ == "__main__":
    with told("ppo"):
        main()
