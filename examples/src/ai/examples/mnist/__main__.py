"""Runs `python -m ai.examples.mnist`."""

from ai.examples.cli import told
from ai.examples.mnist.main import main

if __name__ == "__main__":
    with told("mnist"):
        main()
