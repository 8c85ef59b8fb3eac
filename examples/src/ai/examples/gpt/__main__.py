"""Runs `python -m ai.examples.gpt`."""

from ai.examples.cli import told
from ai.examples.gpt.main import main

if __name__ == "__main__":
    with told("gpt"):
        main()
