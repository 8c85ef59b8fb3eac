"""Runs `python -m ai.examples.stylegan2`."""

from ai.examples.cli import told
from ai.examples.stylegan2.main import main

if __name__ == "__main__":
    with told("stylegan2"):
        main()
