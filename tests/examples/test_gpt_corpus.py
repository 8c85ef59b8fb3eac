import lzma
import math
import random

import pytest
import torch
from torch import nn

from ai.examples.gpt.corpus import UNKNOWN_BITS, Alphabet, compressed_bits, python_docs
from ai.examples.gpt.measure import bits_per_character


@pytest.mark.slow
def test_the_documentation_of_python_is_there_in_two_disjoint_parts():
    corpus = python_docs()
    assert len(corpus.train) > 1_000_000
    assert 0.05 < len(corpus.held_out) / len(corpus.train) < 0.2
    for text in ('The "for" statement', "Return the arc cosine"[:10]):
        assert text in corpus.train + corpus.held_out
    held_out, train = ({" ".join(p.split()) for p in t.split("\n\n")} for t in (corpus.held_out, corpus.train))
    assert all(len(paragraph) <= 40 for paragraph in held_out & train)
    assert python_docs().fingerprint == corpus.fingerprint
    topics = python_docs(docstrings=False)
    assert corpus.train.startswith(topics.train)
    assert topics.fingerprint != corpus.fingerprint


def test_the_alphabet_inverts_and_marks_what_it_does_not_know():
    alphabet = Alphabet("to be or not to be")
    codes = alphabet.encode("beton")
    assert codes.dtype == torch.int64
    assert alphabet.decode(codes) == "beton"
    assert alphabet.encode("x").tolist() == [0]
    assert alphabet.decode([0]) == "\N{REPLACEMENT CHARACTER}"
    assert len(alphabet) == len(set("to be or not to be")) + 1
    assert (1 << 20) < 2**UNKNOWN_BITS < 0x110000 * 1.01


def test_the_compressor_is_xz_at_level_9():
    text = "".join(random.Random(0).choices("abcdefgh", k=5000))
    assert compressed_bits(text) == 8 * len(lzma.compress(text.encode(), preset=9)) / 5000
    assert compressed_bits(text, given=text) < compressed_bits(text) / 10
    with pytest.raises(ValueError, match="text must hold at least one character"):
        compressed_bits("")


class Fixed(nn.Module):
    """Predicts from a table: row = current code, column = next."""

    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[x]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 8, 9, 25, 64])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_each_character_is_paid_for_once(n, stride):
    generator = torch.Generator().manual_seed(n)
    table = torch.randn(5, 5, generator=generator)
    codes = torch.randint(1, 5, (n,), generator=generator)
    prices = -table.log_softmax(1)[codes[:-1], codes[1:]].double().sum().item() / math.log(2) + math.log2(5)
    bits = bits_per_character(Fixed(table), codes, n_codes=5, context=4, stride=stride, batch_size=2)
    assert bits == pytest.approx(prices / n, rel=1e-5)


def test_characters_outside_the_alphabet_are_paid_in_full():
    table = torch.zeros(4, 4)
    codes = torch.tensor([1, 0, 2, 3])
    bits = bits_per_character(Fixed(table), codes, n_codes=4, context=2)
    assert bits == pytest.approx((4 * 2 + UNKNOWN_BITS) / 4)


def test_every_counted_character_but_the_first_sees_context_minus_stride_before_it():
    seen = {}

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.none = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            for row in x:
                for at, code in enumerate(row.tolist()):
                    seen[code] = max(seen.get(code, 0), at + 1)  # how much of the text this prediction could use
            return torch.zeros(*x.shape, 64)

    bits_per_character(Spy(), torch.arange(40), n_codes=64, context=8, stride=2)
    assert all(seen[code] >= min(code + 1, 8 - 2 + 1) for code in range(39))


@pytest.mark.parametrize(
    ("codes", "stride", "message"),
    [
        (torch.tensor([1]), None, r"codes must be \(n,\) with n of at least 2, got shape \(1,\)"),
        (torch.zeros(2, 3, dtype=torch.int64), None, "got shape"),
        (torch.tensor([1, 2, 3]), 5, r"stride must lie in \[1, context \(4\)\], got 5"),
        (torch.tensor([1, 2, 3]), 0, "got 0"),
    ],
)
def test_the_measure_refuses(codes, stride, message):
    with pytest.raises(ValueError, match=message):
        bits_per_character(Fixed(torch.zeros(4, 4)), codes, n_codes=4, context=4, stride=stride)
