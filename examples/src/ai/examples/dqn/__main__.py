"""Runs `python -m ai.examples.dqn`."""

from ai.examples.dqn.main import main

if __name__ == "__main__":
    main()
