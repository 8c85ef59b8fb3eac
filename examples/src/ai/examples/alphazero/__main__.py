"""Runs `python -m ai.examples.alphazero`."""

from ai.examples.alphazero.main import main
from ai.examples.cli import told

if __name__ == "__main__":
    with told("alphazero"):
        main()
