"""Runs `python -m ai.examples.sac`."""

from ai.examples.sac.main import main

if __name__ == "__main__":
    main()
