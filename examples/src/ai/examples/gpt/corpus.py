"""Text that comes with every Python: its language reference, and the docstrings of its standard library."""

import ast
import hashlib
import lzma
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
# What an unseen character costs on top of the symbol that announces it: any of Unicode's, at log2(0x110000) bits.
UNKNOWN_BITS = 20.09


@dataclass(frozen=True)
class Corpus:
    """Text in two parts that share no document.

    Args:
        train: What a model may learn from.
        held_out: What it is measured on.
    """

    train: str
    held_out: str

    @property
    def fingerprint(self) -> str:
        """The first 12 digits of the SHA-256 of both parts: the text differs a little between versions of Python."""
        return hashlib.sha256(f"{self.train}\0{self.held_out}".encode()).hexdigest()[:12]


@cache
def python_docs(*, docstrings: bool = True) -> Corpus:
    """Returns about 2 million characters, every tenth document held out, chosen by a hash of its name.

    A paragraph of more than 40 characters is taken once, however often it stands there: some topics repeat parts of
    others, which would show a model what it is measured on.

    Args:
        docstrings: Whether to take the standard library's docstrings, one document a module, after the 79 topics of
            the language reference. Reading them takes some seconds, once a process; the topics alone are 0.5 million
            characters.
    """
    train: list[str] = []
    held_out: list[str] = []
    seen: set[str] = set()
    for name, text in chain(_topics(), _library() if docstrings else ()):
        fresh = []
        for paragraph in text.split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) <= 40 or words not in seen:
                fresh.append(paragraph)
                seen.add(words)
        (train if crc32(name.encode()) % 10 else held_out).append("\n\n".join(fresh))
    return Corpus("\n\n".join(train), "\n\n".join(held_out))


ALPHABET_FILE = "alphabet.json"
"""In a trial's folder: the characters that its model knows."""


class Alphabet:
    """Characters as numbers: those of a text, after one symbol for all others.

    Example:
        >>> alphabet = Alphabet("hello")
        >>> len(alphabet), alphabet.encode("hole!").tolist(), alphabet.decode([2, 1, 3, 3, 4])
        (5, [2, 4, 3, 1, 0], 'hello')
    """

    def __init__(self, text: str) -> None:
        self.characters = UNKNOWN + "".join(sorted(set(text) - {UNKNOWN}))
        self._codes = {character: code for code, character in enumerate(self.characters)}

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """Returns `(len(text),)` int64 numbers; characters outside the alphabet become 0."""
        return torch.tensor([self._codes.get(character, 0) for character in text], dtype=torch.int64, device="cpu")

    def decode(self, codes: list[int] | Tensor) -> str:
        """Returns the text of a sequence of numbers."""
        return "".join(self.characters[code] for code in (codes.tolist() if isinstance(codes, Tensor) else codes))


def compressed_bits(text: str, given: str = "") -> float:
    """Returns the bits per character that `xz -9` needs for `text`, after it has seen `given` (which is then free).

    Example:
        >>> compressed_bits("abc" * 1000) < 0.3 < compressed_bits("abc" * 3)
        True
    """
    if not text:
        raise ValueError("text must hold at least one character, got none")

    def size(content: str) -> int:
        return 8 * len(lzma.compress(content.encode(), preset=9)) if content else 0

    return (size(given + text) - size(given)) / len(text)


def _topics() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    yield from sorted(topics.items())


def _library() -> Iterator[tuple[str, str]]:
    library = Path(sysconfig.get_path("stdlib"))
    skipped = {"dist-packages", "site-packages", "test", "tests", "lib2to3", "idlelib", "turtledemo", "ensurepip"}
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if skipped.isdisjoint(name.parts) and not name.parts[0].startswith("config-") and (text := _docstrings(path)):
            yield name.as_posix(), text


def _docstrings(path: Path) -> str:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a library file's own faulty escapes
        tree = ast.parse(path.read_bytes())
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n\n".join(text for text in found if text)
