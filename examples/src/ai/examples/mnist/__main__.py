"""Runs `python -m ai.examples.mnist`."""

from ai.examples.mnist.main import main

if __name__ == "__main__":
    main()
