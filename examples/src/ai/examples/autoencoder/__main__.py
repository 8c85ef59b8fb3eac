"""Runs `python -m ai.examples.autoencoder`."""

from ai.examples.autoencoder.main import main
from ai.examples.cli import told

if __name__ == "__main__":
    with told("autoencoder"):
        main()
