"""Runs `python -m ai.examples.vit`."""

from ai.examples.cli import told
from ai.examples.vit.main import main

if __name__ == "__main__":
    with told("vit"):
        main()
