"""Serves a trained model, which writes on character by character, to whoever sends the beginning of a text.

Command::

    ai-examples gpt
    ai-infer serve 'gpt=ai.examples.gpt.serve:writer?args={"folder":"ai-lab/gpt"}&input=prompt:BYTES:-1'
    curl -N -H 'accept: text/event-stream' -d 'The function returns' localhost:8000/models/gpt
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import nn

from ai.examples.gpt.corpus import ALPHABET_FILE, Alphabet
from ai.examples.gpt.model import Model
from ai.model.saved import build, newest


class Writer(nn.Module):
    """Yields what follows a text, a character at a time: each is one step of the network, by its cache.

    Args:
        model: of the characters.
        alphabet: that it was trained with.
        length: how many characters it writes.
        temperature: of its draws; 0: always the most probable character.
        seed: of its draws, so that the same text is always followed by the same.
    """

    def __init__(
        self, model: Model, alphabet: Alphabet, length: int = 300, temperature: float = 0.8, seed: int = 0
    ) -> None:
        super().__init__()
        self.model = model
        self.alphabet = alphabet
        self.length = length
        self.temperature = temperature
        self.seed = seed

    def forward(self, prompts: list[bytes]) -> Iterator[str]:
        """Yields the characters after the one prompt."""
        if len(prompts) != 1 or not prompts[0]:
            raise ValueError(f"prompts must hold one text that is not empty, got {len(prompts)}")
        codes = self.alphabet.encode(prompts[0].decode())[None]
        generator = torch.Generator(self.model.device).manual_seed(self.seed)
        for code in self.model.write(codes, self.length, temperature=self.temperature, generator=generator):
            yield self.alphabet.decode(code[0])


def writer(folder: str, length: int = 300, temperature: float = 0.8) -> Writer:
    """Returns a writer with the newest snapshot in a trial's folder."""
    snapshot = newest(Path(folder) / "snapshots")
    if snapshot is None:
        raise FileNotFoundError(f"folder ({folder}) must hold a snapshot, and has none")
    characters = json.loads((Path(folder) / ALPHABET_FILE).read_text())
    return Writer(cast(Model, build(snapshot)), Alphabet(characters), length, temperature)
