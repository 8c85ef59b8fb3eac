import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import ai.model as m
from ai.examples.gpt import Config, Model, run
from ai.examples.gpt.corpus import Alphabet
from ai.examples.gpt.main import DESCRIPTIONS, PRESETS, NextCharacter, read, windows
from ai.examples.gpt.model import _race
from ai.examples.gpt.serve import Writer, writer

POSITIONS = ["rotary", "learned"]


def small(**options) -> Model:
    shape = {"context": 12, "dim": 32, "depth": 2, "num_heads": 4, **options}
    model = Model(11, **shape).init(seed=0).eval()
    with torch.no_grad():  # branches far stronger than the embedding: what it writes depends on all that it has read
        model.embed.weight.mul_(2)
        for parameter in model.blocks.parameters():
            parameter.mul_(6 if parameter.ndim == 2 else 1)
    return model


def codes(n: int = 3, length: int = 12) -> torch.Tensor:
    return torch.randint(0, 11, (n, length), generator=torch.Generator().manual_seed(0))


def test_gpt_2_small_has_its_published_number_of_parameters():
    with torch.device("meta"):
        model = Model(50257, context=1024, dim=768, depth=12, num_heads=12, positions="learned")
    assert model.n_params == 124_439_808


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_prediction_depends_on_every_code_before_it_and_on_none_after(positions, on_device):
    model = Model(11, context=12, dim=32, depth=2, num_heads=4, positions=positions).init(seed=0).double()
    x = codes(1)
    base = on_device(model)(x)
    for at in range(12):
        changed = x.clone()
        changed[0, at] = (x[0, at] + 1) % 11
        moved = (on_device(model)(changed) - base).abs().amax(-1)[0] > 1e-12
        assert not moved[:at].any()
        assert moved[at:].all()


@pytest.mark.parametrize("positions", POSITIONS)
def test_order_matters(positions):
    model = small(positions=positions)
    a = torch.tensor([[1, 2, 3, 4]])
    b = torch.tensor([[2, 1, 3, 4]])
    assert (model(a)[0, -1] - model(b)[0, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("cuts", [[5], [1, 2, 7], list(range(1, 12))])
def test_a_cache_gives_the_same_logits_as_the_whole_sequence(positions, cuts, on_device):
    model = small(positions=positions).double()
    x = codes()
    cache = m.KVCache()
    with torch.no_grad():
        parts = [on_device(model)(part, cache) for part in torch.tensor_split(x, cuts, 1)]
        whole = model(x)
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-12


def slow_greedy(model: Model, prompt: torch.Tensor, n: int) -> torch.Tensor:
    """Reads the whole window again for each code; a full window shrinks to its last half."""
    text, start = prompt, max(prompt.shape[1] - model.context, 0)
    for _ in range(n):
        with torch.no_grad():
            text = torch.cat([text, model(text[:, start:])[:, -1:].argmax(-1)], 1)
        if text.shape[1] - start > model.context:
            start = text.shape[1] - model.context // 2
    return text[:, prompt.shape[1] :]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("length", [1, 5, 12, 20])
def test_writing_with_a_cache_is_writing_without(positions, length, on_device):
    model = small(positions=positions)
    prompt = codes(2, length)
    written = on_device(model.generate)(prompt, 30, temperature=0)
    assert written.shape == (2, 30)
    assert len(written.unique()) > 4
    assert torch.equal(written, slow_greedy(model, prompt, 30))


def test_draws_follow_the_models_probabilities(on_device):
    model = small()
    prompt = codes(1, 6)
    with torch.no_grad():
        expected = (model(prompt)[0, -1] / 2).softmax(0)
    generator = torch.Generator().manual_seed(0)
    drawn = on_device(model.generate)(prompt.expand(4000, -1), 1, temperature=2, generator=generator)[:, 0]
    share = torch.bincount(drawn, minlength=11) / 4000
    assert (share - expected).abs().max() < 0.03


def test_top_k_draws_from_the_k_most_probable(on_device):
    model = small()
    prompt = codes(1, 6)
    with torch.no_grad():
        best = set(model(prompt)[0, -1].topk(3).indices.tolist())
    drawn = on_device(model.generate)(prompt.expand(500, -1), 1, temperature=5, top_k=3, generator=torch.Generator())[
        :, 0
    ]
    assert set(drawn.tolist()) == best


def test_the_race_by_which_a_gpu_draws_follows_the_probabilities_and_takes_no_code_of_no_chance(monkeypatch, on_device):
    p = torch.tensor([0.0, 0.1, 0.0, 0.6, 0.3])
    drawn = on_device(_race)(p.expand(20_000, -1), torch.Generator().manual_seed(0))[:, 0]
    torch.testing.assert_close(torch.bincount(drawn, minlength=5) / 20_000, p, atol=0.01, rtol=0)
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, generator=None: self.zero_())  # as some devices draw
    assert _race(p[None], None).tolist() == [[3]]


def test_one_seed_writes_one_text():
    model = small()
    a, b, c = (model.generate(codes(1, 3), 20, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_writer_yields_what_generate_returns_beyond_the_context():
    model, alphabet = small(), Alphabet("abcdefghij")
    generator = torch.Generator().manual_seed(3)
    written = model.generate(alphabet.encode("abc")[None], 30, temperature=0.8, generator=generator)
    parts = list(Writer(model, alphabet, 30, seed=3)([b"abc"]))
    assert len(parts) == 30
    assert "".join(parts) == alphabet.decode(written[0])
    for prompts in ([], [b""], [b"a", b"b"]):
        with pytest.raises(ValueError, match=f"prompts must hold one text that is not empty, got {len(prompts)}"):
            next(Writer(model, alphabet)(prompts))


@pytest.mark.parametrize("positions", POSITIONS)
def test_every_parameter_gets_a_gradient(positions, on_device):
    model = Model(11, context=12, dim=32, depth=2, num_heads=4, positions=positions).init(seed=0)
    on_device(model)(codes()).logsumexp(-1).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_the_first_loss_is_that_of_a_uniform_guess(on_device):
    model = Model(100, context=32, dim=128, depth=4, num_heads=4).init(seed=0)
    batch = torch.randint(0, 100, (8, 33), generator=torch.Generator().manual_seed(0))
    assert on_device(NextCharacter())(model, batch, 0).item() == pytest.approx(math.log(100), abs=0.15)


def test_the_loss_is_of_each_code_given_those_before_it(on_device):
    model = small()
    batch = codes(4, 9)
    logits = model(batch[:, :-1])
    slow = [F.cross_entropy(logits[i, t], batch[i, t + 1]) for i in range(4) for t in range(8)]
    assert on_device(NextCharacter())(model, batch, 0).item() == pytest.approx(
        torch.stack(slow).mean().item(), rel=1e-5
    )


def test_windows_are_pieces_of_the_text_one_at_every_place():
    text = torch.arange(20)
    data = windows(text, 5)
    assert len(data) == 15
    for batch in data.loader(4):
        assert batch.shape[1] == 6
        assert (batch.diff(dim=1) == 1).all()
    with pytest.raises(ValueError, match=r"the text must be longer than the context \(20\), got 20 characters"):
        windows(text, 20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Model(5, context=1), "context must be at least 2, got 1"),
        (lambda: Model(5, positions="none"), "positions must be 'rotary' or 'learned', got 'none'"),
        (lambda: small()(codes(1, 13)), r"codes must not reach beyond the context \(12\), got 13"),
        (lambda: small().generate(codes(1, 0), 3), r"time of at least 1, got shape \(1, 0\)"),
        (lambda: small().generate(codes(), 3, temperature=-1), "got -1 and None"),
        (lambda: small().generate(codes(), 3, top_k=0), "got 1.0 and 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_text_of_ones_own_holds_out_its_last_tenth(tmp_path):
    config = Config(context=9)
    (tmp_path / "text.txt").write_text("0123456789" * 10, encoding="utf-8")
    corpus = read(replace(config, data=str(tmp_path / "text.txt")))
    assert (corpus.train, corpus.held_out) == ("0123456789" * 9, "0123456789")
    assert read(config, "0123456789" * 10) == corpus == read(config, corpus)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0123456789" * 9, r"more than 10 times the characters of context \(9\), got 90"),
        ("", r"more than 10 times the characters of context \(9\), got 0"),
        (b"\xff\xfe\x00", "must be a text file in UTF-8, .*text.txt is not: .* can't decode byte 0xff"),
        (None, "must be a text file, .*text.txt is a folder"),
    ],
)
def test_what_is_no_text_or_too_short_is_refused(content, message, tmp_path):
    path = tmp_path / "text.txt"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read(Config(context=9, data=str(path)))
    with pytest.raises(ValueError, match=r"data \(.*\) must be left out where a dataset is given"):
        read(Config(data=str(path)), "text")
    with pytest.raises(FileNotFoundError, match=r"data must be a text file, there is no nowhere\.txt"):
        read(Config(data="nowhere.txt"))


@pytest.mark.slow
def test_a_text_of_ones_own_is_learnt_and_not_mistaken_for_another(tmp_path, monkeypatch):
    """The held-out tenth has characters that the model never saw, as has the prompt."""
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path))
    text = "the cat sat on the mat. " * 30 + "ein Mädchen saß: öäü " * 4
    config = replace(PRESETS["tiny"], steps=2)
    numbers = run(config, text)
    assert math.isfinite(numbers["bits_per_character"])
    before = (tmp_path / "gpt" / "alphabet.json").read_bytes()
    assert len("".join(writer(str(tmp_path / "gpt"), length=5)(["ßa".encode()]))) == 5
    with pytest.raises(ValueError, match=r"data must have the fingerprint of the trial to resume, '[0-9a-f]{12}', got"):
        run(replace(config, resume=True, steps=4), text.replace("cat", "dog"))
    assert (tmp_path / "gpt" / "alphabet.json").read_bytes() == before


def test_every_preset_is_described():
    assert PRESETS.keys() == DESCRIPTIONS.keys()
    assert PRESETS["laptop"] == Config()


@pytest.mark.slow
def test_the_tiny_preset_leaves_a_whole_trial(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path))
    numbers = run(PRESETS["tiny"])
    samples = (tmp_path / "gpt" / "samples.txt").read_text(encoding="utf-8")
    assert samples.count("--- step ") >= 2
    assert len(samples) > 600
    assert (tmp_path / "gpt" / "snapshots" / "000000004" / "model.safetensors").exists()
    assert len("".join(writer(str(tmp_path / "gpt"), length=20)([b"The"]))) == 20
    assert 3 < numbers["bits_per_character"] < 8
    assert numbers["xz_given_train"] < numbers["xz"]
    assert f"{numbers['xz']:.3f}" in capsys.readouterr().out
