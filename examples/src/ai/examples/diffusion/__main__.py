"""Runs `python -m ai.examples.diffusion`."""

from ai.examples.cli import told
from ai.examples.diffusion.main import main

if __name__ == "__main__":
    with told("diffusion"):
        main()
