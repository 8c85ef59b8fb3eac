"""Runs `python -m ai.examples.sac`."""

from ai.examples.cli import told
from ai.examples.sac.main import main

if __name__ == "__main__":
    with told("sac"):
        main()
