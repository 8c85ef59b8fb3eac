"""Runs `python -m ai.examples.alphazero`."""

from ai.examples.alphazero.main import main

if __name__ == "__main__":
    main()
