"""Runs `python -m ai.examples.sampled_muzero`."""

from ai.examples.sampled_muzero.main import main

if __name__ == "__main__":
    main()
