"""Runs `python -m ai.examples.stylegan2`."""

from ai.examples.stylegan2.main import main

if __name__ == "__main__":
    main()
