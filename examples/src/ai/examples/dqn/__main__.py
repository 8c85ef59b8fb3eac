"""Runs `python -m ai.examples.dqn`."""

from ai.examples.cli import told
from ai.examples.dqn.main import main

if __name__ == "__main__":
    with told("dqn"):
        main()
