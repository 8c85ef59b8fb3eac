"""Runs `python -m ai.examples.play`."""

from ai.examples.cli import told
from ai.examples.play.main import main

if __name__ == "__main__":
    with told("play"):
        main()
