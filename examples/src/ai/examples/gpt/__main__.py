"""Runs `python -m ai.examples.gpt`."""

from ai.examples.gpt.main import main

if __name__ == "__main__":
    main()
