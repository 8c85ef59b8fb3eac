"""Runs `python -m ai.examples.muzero`."""

from ai.examples.cli import told
from ai.examples.muzero.main import main

if __name__ == "__main__":
    with told("muzero"):
        main()
