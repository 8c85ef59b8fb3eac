"""Runs `python -m ai.examples.play`."""

from ai.examples.play.main import main

if __name__ == "__main__":
    main()
