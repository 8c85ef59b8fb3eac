"""Trains a character-level transformer on Python's own documentation, samples from it, and measures it against `xz -9`.

Command: `ai-examples gpt`, or `python -m ai.examples.gpt --help` for presets and options.
"""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.data import Dataset
from ai.data.batch.device import checked_device
from ai.examples.cli import read_config
from ai.examples.gpt.corpus import Alphabet, Corpus, compressed_bits, python_docs
from ai.examples.gpt.figures import save_curve
from ai.examples.gpt.measure import bits_per_character
from ai.examples.gpt.model import Model
from ai.examples.own_data import kind, own_text
from ai.examples.run_config import RunConfig
from ai.train import Trainer, log, opt, schedule


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """What a run needs; every field is an option of the command line."""

    text: Literal["python-docs", "python-topics"] = "python-docs"
    """The documentation that comes with Python, or of that the language reference alone."""
    data: str = ""
    """A text file of your own instead, in UTF-8; its last tenth is held out."""
    trial: str = "gpt"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    context: int = 128
    """Most characters that the model sees at once."""
    dim: int = 128
    """Width of the model."""
    depth: int = 4
    """Number of blocks."""
    num_heads: int = 4
    """Attention heads in a block."""
    positions: Literal["rotary", "learned"] = "rotary"
    """How the model knows the order of characters."""
    dropout: float = 0.0
    """Share of activations dropped."""
    steps: int = 4000
    """Number of updates."""
    batch_size: int = 16
    """Windows of `context` characters in a batch."""
    learning_rate: float = 2e-3
    """Peak learning rate; warmed up, then cosine to a tenth."""
    weight_decay: float = 0.1
    """Decay of matrices; norms, biases and embeddings are left alone."""
    precision: Literal["bf16"] | None = None
    """Of the activations while training; None is float32."""
    compile: bool = False
    """Compile the model."""
    interval: int = 500
    """Steps between validations, samples and snapshots."""


PRESETS = {
    "tiny": Config(text="python-topics", context=16, dim=16, depth=1, num_heads=2, steps=4, batch_size=4, interval=2),
    "laptop": Config(),
    "gpu": Config(
        context=1024,
        dim=768,
        depth=12,
        num_heads=12,
        positions="learned",
        dropout=0.1,
        steps=20_000,
        batch_size=64,
        learning_rate=6e-4,
        precision="bf16",
        compile=True,
        device="cuda",
    ),
}
DESCRIPTIONS = {
    "tiny": "seconds; for tests",
    "laptop": "0.8 million parameters, minutes on a CPU",
    "gpu": "the shape of GPT-2 small: 12 blocks of 768, 1,024 characters of context, learned positions",
}


class NextCharacter:
    """The mean loss of predicting each character from those before it, in nats; logs bits per character.

    The batch is `(batch, time + 1)` codes.
    """

    def __call__(self, model: nn.Module, batch: Tensor, step: int) -> Tensor:
        """Returns the loss of a batch."""
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        log("bits_per_character", lambda: loss.detach() / math.log(2))
        return loss


def windows(codes: Tensor, context: int, *, stride: int = 1) -> Dataset:
    """Returns the windows of `context + 1` characters of a text, one at every `stride` characters.

    Stored are the places only; a batch is gathered when it is asked for.

    Raises:
        ValueError: The text is not longer than the context.

    Example:
        >>> next(iter(windows(torch.arange(9), 3, stride=3).loader(2))).tolist()
        [[0, 1, 2, 3], [3, 4, 5, 6]]
    """
    if len(codes) <= context:
        raise ValueError(f"the text must be longer than the context ({context}), got {len(codes)} characters")
    on: dict[torch.device, tuple[Tensor, Tensor]] = {}  # copied once to each device that batches go to

    def gather(starts: Tensor) -> Tensor:
        if starts.device not in on:
            on[starts.device] = codes.to(starts.device), torch.arange(context + 1, device=starts.device)
        there, offsets = on[starts.device]
        return there[starts[:, None] + offsets]

    return Dataset(torch.arange(0, len(codes) - context, stride, device="cpu"), postprocess=gather)


def run(config: Config, dataset: str | Corpus | None = None) -> dict[str, float]:
    """Trains, samples and measures; returns `bits_per_character` on held-out text, and `xz` and `xz_given_train`.

    Args:
        config: What to do.
        dataset: A text of your own instead of the one that the configuration names, its last tenth held out; or one
            that is already in two parts.
    """
    checked_device(config.device)
    corpus = read(config, dataset)
    alphabet = Alphabet(corpus.train)
    train_codes, held_out_codes = (alphabet.encode(text).to(config.device) for text in (corpus.train, corpus.held_out))
    loader = windows(train_codes, config.context).loader(config.batch_size, config.device, train=True, seed=config.seed)
    shown = windows(held_out_codes[:50_000], config.context, stride=config.context)
    model = Model(
        len(alphabet),
        context=config.context,
        dim=config.dim,
        depth=config.depth,
        num_heads=config.num_heads,
        positions=config.positions,
        dropout=config.dropout,
    )
    model.init(seed=config.seed).to(config.device)
    optimiser = opt.adamw(
        model,
        lr=config.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=config.weight_decay,
        groups=opt.no_decay(skip=lambda name, parameter: "embed" in name),
        clip_norm=1.0,
    )
    trial = config.record(
        config.interval,
        dataset,
        val_data=shown.loader(64, config.device),
        task=lambda model, step: write_sample(trial.path, model, alphabet, step),
    )
    config.keep(trial, "fingerprint", corpus.fingerprint)
    config.keep(trial, "alphabet", alphabet.characters)
    step = trial.resume(model, optimiser, loader) if config.resume else 0
    trainer = Trainer(NextCharacter(), loader, precision=config.precision, compile=config.compile)
    plan = schedule.cosine(config.steps, end=0.1, warmup=config.steps // 20)
    trainer.train(
        model, optimiser, trial.hook(), step=step, steplimit=config.steps, timelimit=config.timelimit, schedule=plan
    )

    model.eval()
    result = {
        "bits_per_character": bits_per_character(model, held_out_codes, n_codes=len(alphabet), context=config.context),
        "xz": compressed_bits(corpus.held_out),
        "xz_given_train": compressed_bits(corpus.held_out, given=corpus.train),
    }
    print(
        f"held-out text ({len(corpus.held_out):,} characters, corpus {corpus.fingerprint}): "
        f"{result['bits_per_character']:.3f} bits a character; xz -9 {result['xz']:.3f}, "
        f"after the training text {result['xz_given_train']:.3f}"
    )
    steps = trial.metrics()["val_loss"]
    save_curve(trial.path / "bits.png", steps.steps, steps.values / math.log(2), result)
    print(f"recorded in {os.path.relpath(trial.path)}: metrics.jsonl, snapshots, samples.txt, bits.png")
    return result


def read(config: Config, dataset: str | Corpus | None = None) -> Corpus:
    """Returns the corpus that a configuration names, or the text that is given, in two parts.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: What is given is no text.
        ValueError: It is no text, or too short for a tenth of it to be longer than the context; or there are two texts.
    """
    if config.data and dataset is not None:
        raise ValueError(f"data ({config.data}) must be left out where a dataset is given")
    if not config.data and dataset is None:
        return python_docs(docstrings=config.text == "python-docs")
    what = f"data ({config.data})" if config.data else "dataset"
    corpus = in_two(own_text(config.data), what, config.context) if config.data else dataset
    if isinstance(corpus, str):
        corpus = in_two(corpus, what, config.context)
    if not isinstance(corpus, Corpus):
        raise TypeError(f"dataset must be a text or a Corpus of two, got {kind(corpus)}")
    for name, text in (("train", corpus.train), ("held_out", corpus.held_out)):
        if not isinstance(text, str):
            raise TypeError(f"dataset must be a Corpus of two texts, got {kind(text)} as {name}")
        if len(text) <= config.context:
            raise ValueError(
                f"{what} must have more characters in {name} than context ({config.context}), got {len(text)}"
            )
        if lone := next((character for character in text if "\ud800" <= character <= "\udfff"), None):
            raise ValueError(f"{what} must be text that UTF-8 can hold, got the lone surrogate {lone!a} in {name}")
    return corpus


def in_two(text: str, what: str, context: int) -> Corpus:
    """Returns a text in two parts, its last tenth held out.

    Raises:
        ValueError: The tenth is not longer than the context.
    """
    cut = len(text) * 9 // 10
    if len(text) - cut <= context:
        raise ValueError(f"{what} must have more than 10 times the characters of context ({context}), got {len(text)}")
    return Corpus(text[:cut], text[cut:])


def write_sample(folder: Path, model: nn.Module, alphabet: Alphabet, step: int) -> dict[str, float]:
    """Appends a piece of text, written by the model after a line break, to the trial's `samples.txt`."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(step)
    codes = model.generate(alphabet.encode("\n")[None], 300, temperature=0.8, generator=generator)  # type: ignore[operator]
    with (folder / "samples.txt").open("a", encoding="utf-8") as file:
        file.write(f"--- step {step}\n{alphabet.decode(codes[0])}\n")
    return {}


def reproduce(*, seed: int = 0, minutes: float = 10) -> dict[str, float]:
    """Trains the `laptop` preset for a few minutes; `bits_per_character` is to be compared with `xz`."""
    return run(replace(PRESETS["laptop"], seed=seed, minutes=minutes, trial="reproduce/gpt"))


def main() -> None:
    """Runs the example with a typed command line."""
    run(read_config(PRESETS, DESCRIPTIONS, __doc__))
