"""Runs `python -m ai.examples.sampled_muzero`."""

from ai.examples.cli import told
from ai.examples.sampled_muzero.main import main

if __name__ == "__main__":
    with told("sampled_muzero"):
        main()
