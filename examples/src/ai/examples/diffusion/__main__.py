"""Runs `python -m ai.examples.diffusion`."""

from ai.examples.diffusion.main import main

if __name__ == "__main__":
    main()
