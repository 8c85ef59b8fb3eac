"""Runs `python -m ai.examples.autoencoder`."""

from ai.examples.autoencoder.main import main

if __name__ == "__main__":
    main()
