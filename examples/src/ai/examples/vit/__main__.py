"""Runs `python -m ai.examples.vit`."""

from ai.examples.vit.main import main

if __name__ == "__main__":
    main()
