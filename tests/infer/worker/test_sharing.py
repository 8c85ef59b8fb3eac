"""Whatever a model does with its input, a caller gets what the model says to that input alone."""

import logging
import os
import sys
import time
from dataclasses import dataclass

import cloudpickle
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ai.infer import Inferencer, RequestError
from ai.infer.worker.rows.batch_axes import BatchAxes, Form
from ai.infer.worker.rows.comparison import Answer, NotRowWiseError
from ai.infer.worker.rows.sharing import Sharing
from tests.infer.waiting import wait_until

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers know nothing of the tests


@dataclass
class Boxes:
    boxes: torch.Tensor
    names: list
    note: str = "boxes"


class Zoo(nn.Module):
    """Does what its keyword says: one worker for all cases."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(16, 2, dim_feedforward=32)
        self.gru = nn.GRU(8, 6, num_layers=2)
        self.linear = nn.Linear(8, 5)
        self.register_buffer("labels", torch.arange(10))

    def forward(self, x, y=None, *, do, path=None):
        if do == "wait":
            while os.path.exists(path):
                time.sleep(0.001)
            return x
        return getattr(self, f"do_{do}")(x) if y is None else getattr(self, f"do_{do}")(x, y)

    def do_encoder(self, x):
        return self.encoder(x)

    def do_gru(self, x):
        return self.gru(x)

    def do_state(self, x):
        return self.gru(x)[1]

    def do_wave(self, x):
        return (x - x.mean()) / x.std()

    def do_clip(self, image, text):
        return image @ text.T

    def do_labels(self, x):
        return {"scores": self.linear(x), "labels": self.labels}

    def do_batch_norm(self, x):
        return F.batch_norm(x, None, None, training=True)

    def do_cumsum(self, x):
        return x.cumsum(0)

    def do_sort(self, x):
        return tuple(x.sort(0))

    def do_softmax(self, x):
        return x.softmax(0)

    def do_argmax(self, x):
        return x.argmax(0)

    def do_flip(self, x):
        return x.flip(0)

    def do_gram(self, x):
        return x @ x.T

    def do_pairs(self, x):  # a request of four rows or more
        return (x.view(-1, 2, x.shape[-1]) - x.view(-1, 2, x.shape[-1]).mean(1, keepdim=True)).view_as(x)

    def do_in_place(self, x):
        return x.add_(1)

    def do_constants(self, x):
        return {"y": x * 2, "n": None, "mean": float(x.mean()), "rows": len(x)}

    def do_none(self, x):
        return None

    def do_ragged(self, x):
        return x[:1] * 2, x[:2] + 1, None

    def do_text(self, x):
        return ["positive" if value > 0 else "negative" for value in x.sum(1).tolist()]

    def do_bytes(self, x):
        return bytes(x.long().clamp(0, 255).flatten().tolist()), "a long text " * 100

    def do_boxes(self, x):
        kept = x[x[:, 0] > 0]
        return Boxes(kept, [f"box {i}" for i in range(len(kept))])

    def do_nothing_left(self, x):
        return x[:0]

    def do_scalar(self, x):
        return x.sum()

    def do_rows(self, x):
        return x * 2 + 1

    def do_linear(self, x):
        return self.linear(x)

    def do_long_rows(self, x):
        return x.argmax(1)


@pytest.fixture(scope="module")
def zoo():
    torch.manual_seed(1)
    return Zoo().eval()


@pytest.fixture(scope="module")
def served(zoo):
    with Inferencer(zoo, batch_size=16, timeout_s=100) as inferencer:
        yield inferencer


def _same(a, b, exact):
    if isinstance(b, torch.Tensor):
        close = torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-5, atol=1e-6)
        return a.dtype is b.dtype and a.shape == b.shape and close
    if isinstance(b, Boxes):
        return type(a) is Boxes and _same(vars(a), vars(b), exact)
    if isinstance(b, dict):
        return list(a) == list(b) and all(_same(a[key], b[key], exact) for key in b)
    if isinstance(b, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(_same(x, y, exact) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


ROW_WISE = {"rows", "linear", "long_rows"}
CASES = [
    ("encoder", (100, 1, 16)),
    ("encoder", (10, 1, 16)),
    ("gru", (100, 1, 8)),
    ("gru", (20, 8)),
    ("state", (2, 8)),
    ("state", (2, 2, 8)),
    ("wave", (16000,)),
    ("labels", (10, 8)),
    ("labels", (3, 8)),
    ("batch_norm", (4, 8)),
    ("cumsum", (4, 8)),
    ("cumsum", (40, 8)),
    ("sort", (4, 8)),
    ("softmax", (4, 8)),
    ("argmax", (8, 8)),
    ("flip", (3, 8)),
    ("gram", (4, 8)),
    ("pairs", (4, 8)),
    ("pairs", (34, 8)),
    ("in_place", (2, 8)),
    ("constants", (2, 8)),
    ("none", (2, 8)),
    ("ragged", (3, 8)),
    ("text", (2, 8)),
    ("bytes", (2, 8)),
    ("boxes", (6, 8)),
    ("nothing_left", (2, 8)),
    ("scalar", (2, 8)),
    ("scalar", ()),
    ("rows", (0, 8)),
    ("rows", (2, 8)),
    ("linear", (1, 8)),
    ("linear", (3, 8)),
    ("linear", (40, 8)),
    ("long_rows", (3, 8)),
]


@pytest.mark.parametrize(("do", "shape"), CASES)
def test_alone_at_once_and_together_equal_the_model(served, zoo, tmp_path, do, shape):
    seed = torch.Generator().manual_seed(len(do))
    for turn in range(3):  # unknown, just learnt, known
        xs = [torch.randn(shape, generator=seed) for _ in range(3)]
        truths = [zoo(x.clone(), do=do) for x in xs]
        exact = do not in ROW_WISE or do == "rows"
        assert _same(served(xs[0], do=do), truths[0], True)
        gate = tmp_path / f"gate{turn}"
        gate.touch()
        busy = served.infer_async(torch.zeros(1), do="wait", path=str(gate))
        ids = [served.infer_async(x, do=do) for x in xs]
        gate.unlink()
        for request_id, truth in zip(ids, truths, strict=True):
            assert _same(served.wait_for_resp(request_id), truth, exact)
        served.wait_for_resp(busy)


class Only(nn.Module):
    """One of the zoo's cases without its keyword, as `multi_infer` passes positional arguments alone."""

    def __init__(self, zoo):
        super().__init__()
        self.zoo = zoo

    def forward(self, case, x, y=None):
        return self.zoo(x, y, do=case)


@pytest.fixture(scope="module")
def by_name(zoo):
    with Inferencer(Only(zoo), batch_size=16, timeout_s=100) as inferencer:
        yield inferencer


@pytest.mark.parametrize(("do", "shape"), CASES)
def test_multi_infer_equals_the_model(by_name, zoo, do, shape):
    seed = torch.Generator().manual_seed(len(do))
    for _ in range(3):
        xs = [torch.randn(shape, generator=seed) for _ in range(5)]
        for x, y in zip(xs, by_name.multi_infer([(do, x) for x in xs]), strict=True):
            assert _same(y, zoo(x.clone(), do=do), do not in ROW_WISE or do == "rows")


def test_two_inputs_that_look_at_each_other_are_not_mixed(by_name, zoo):
    for _ in range(3):
        pairs = [(torch.randn(4, 8), torch.randn(4, 8)) for _ in range(4)]
        outputs = by_name.multi_infer([("clip", *pair) for pair in pairs])
        assert all(torch.equal(y, zoo(*pair, do="clip")) for y, pair in zip(outputs, pairs, strict=True))


def test_rows_that_are_independent_share_calls_once_that_is_known(by_name):
    xs = [torch.randn(2, 8) for _ in range(8)]
    for _ in range(3):
        before = by_name.stats().batches
        by_name.multi_infer([("rows", x) for x in xs])
    assert by_name.stats().batches - before == 1


def test_worker_says_in_the_log_what_it_shares(by_name, caplog):
    with caplog.at_level(logging.INFO, "ai.infer"):
        by_name.multi_infer([("flip", torch.randn(5, 2, 3)) for _ in range(3)])
        form = '["c", "flip"], ["t"]], ["d"]], ["float32"], [[2, 3]]] are answered one a call'  # and no other test's

        def said():
            return [text for text in caplog.messages if form in text]

        wait_until(said)
    (text,) = said()
    assert text.endswith("the output for a request depends on the other requests")


def test_equal_inputs_teach_as_well_since_others_are_tried(by_name, zoo):
    for do, n_calls in [("linear", 1), ("cumsum", 8), ("wave", 8)]:
        xs = [torch.zeros(2, 8)] * 8 if do != "wave" else [torch.ones(3, 8)] * 8
        for _ in range(3):
            before = by_name.stats().batches
            by_name.multi_infer([(do, x) for x in xs])
        assert by_name.stats().batches - before == n_calls
        ys = [torch.randn_like(xs[0]) for _ in range(8)]
        for y, output in zip(ys, by_name.multi_infer([(do, y) for y in ys]), strict=True):
            torch.testing.assert_close(output, zoo(y, do=do))


def test_share_is_declared_or_forbidden(zoo):
    with Inferencer(Only(zoo), share=False, batch_size=16) as inferencer:
        before = inferencer.stats().batches
        inferencer.multi_infer([("rows", torch.ones(2, 8))] * 8)
        assert inferencer.stats().batches - before == 8
        assert inferencer("rows", torch.ones(40, 8)).shape == (40, 8)
        assert inferencer.stats().batches - before == 9


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(8, 6, num_layers=2)

    def forward(self, x, scale):
        output, state = self.gru(x)
        return output * scale, state, self.gru.weight_hh_l0


def test_axes_are_declared_in_the_manner_of_vmap(tmp_path):
    torch.manual_seed(0)
    model = Sequences().eval()
    options = {"in_axes": (1, None), "out_axes": (1, 1, None), "max_delay_s": 0.05}
    with Inferencer(model, timeout_s=100, **options) as inferencer:
        scales = [torch.tensor([2.0]), torch.tensor([3.0])]
        n_calls = turn = 0
        while turn < 3 or n_calls > 1:  # more where the system let who asks stand still between two of them
            turn += 1
            assert turn < 1000
            xs = [torch.randn(7, 1 + i % 2, 8) for i in range(4)]
            before = inferencer.stats().batches
            ids = [inferencer.infer_async(x, scales[0]) for x in xs]
            for x, request_id in zip(xs, ids, strict=True):
                for y, truth in zip(inferencer.wait_for_resp(request_id), model(x, scales[0]), strict=True):
                    torch.testing.assert_close(y, truth)
            n_calls = inferencer.stats().batches - before
            ids = [inferencer.infer_async(xs[0], scale) for scale in scales]  # never merged
            for scale, request_id in zip(scales, ids, strict=True):
                torch.testing.assert_close(inferencer.wait_for_resp(request_id)[0], model(xs[0], scale)[0])
        assert n_calls == 1


def test_options_of_sharing_are_checked():
    model = nn.Linear(2, 2)
    for options, message in [
        ({"share": "maybe"}, r"share must be True, False or 'auto', not 'maybe'"),
        ({"in_axes": None}, r"in_axes must name the batch axis of at least one argument, not None"),
        ({"in_axes": (0, "x")}, r"in_axes must be a whole number, or hold whole numbers and None, not \(0, 'x'\)"),
        ({"out_axes": 0.5}, r"out_axes must be a whole number, or hold whole numbers and None, not 0.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            Inferencer(model, **options)


# What is learnt, without a worker -------------------------------------------------------------------------------------

FORM = Form("form", 1, (0,))


def _learn(model, parts, *, sharing=None, max_rows=16, values=torch.randn, coarsest=None):
    """Lets `sharing` compare a model's answers to random requests; returns it."""
    sharing = sharing or Sharing("auto", BatchAxes(), coarsest)
    cells = [[values(rows, 3)] for rows in parts]

    def call(cell):
        return Answer(["t"], [model(cell[0].clone())])

    def together(cells):
        pieces = torch.cat([cell[0] for cell in cells]).split(max_rows)
        return Answer(["t"], [torch.cat([model(piece.clone()) for piece in pieces])])

    sharing.learn(FORM, cells, parts, [call(cell) for cell in cells], max_rows, 0, call, together)
    return sharing


def test_only_what_was_compared_is_shared():
    torch.manual_seed(0)
    sharing = _learn(lambda x: x * 2, [1, 1, 3])
    assert sharing.allows("form", [1, 3, 1], 5, 16)
    assert not sharing.allows("form", [1, 2], 3, 16)  # two rows were never compared
    assert not sharing.allows("form", [1] * 12, 12, 16)  # nor more than twice as many in all
    assert not sharing.allows("form", [40], 40, 16)  # nor pieces
    assert not sharing.allows("another", [1, 1], 2, 16)
    _learn(lambda x: x * 2, [40], sharing=sharing)
    assert sharing.allows("form", [40], 40, 16)


def test_shared_calls_are_looked_at_now_and_then_and_after_each_update(caplog):
    torch.manual_seed(0)
    sharing = _learn(lambda x: x * 2, [1, 1])
    looks = [i for i in range(2, 1200) if sharing.look_at("form", 5, 0)]
    assert looks == [2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024]
    assert len(set(sharing.look_at("form", 5, 1))) == 2  # two of the five, with other weights
    assert not sharing.look_at("form", 5, 1)
    assert sharing.look_at("form", 1, 1) == [0]  # one in pieces: that of several requests says nothing of it
    assert not sharing.look_at("form", 1, 1)
    whole = Answer(["t"], [torch.arange(15.0).view(5, 3)])
    right, wrong = Answer(["t"], [whole.tensors[0][3:4]]), Answer(["t"], [whole.tensors[0][2:3]])
    for _ in range(2):  # the second from memory
        assert sharing.axes("form", whole, 5) == [0]
    sharing.check(whole, [0], [1] * 5, [3], [right])
    with pytest.raises(NotRowWiseError, match="depends on the other requests"):
        sharing.check(whole, [0], [1] * 5, [3], [wrong])
    for shape, reason in [((5, 2), "sizes"), ((4, 3), "one row for each"), ((), "one row for each")]:
        with pytest.raises(NotRowWiseError, match=reason):
            sharing.axes("form", Answer(["t"], [torch.zeros(shape)]), 5)
    with pytest.raises(NotRowWiseError, match="depend"):
        sharing.axes("form", Answer(["l", ["t"]], whole.tensors), 5)
    with caplog.at_level(logging.INFO, "ai.infer"):
        _learn(lambda x: x - x.mean(0), [1, 1], sharing=sharing)
    assert sharing.refuses("form")
    assert not sharing.allows("form", [1, 1], 2, 16)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "no longer share a call, after 1203 that did: the output for a request depends" in record.getMessage()


def test_rows_that_touch_for_rare_values_alone_do_not_share():
    torch.manual_seed(0)
    assert _learn(lambda x: x / x.abs().max().clamp(min=50), [1, 2]).refuses("form")
    assert _learn(lambda x: torch.where(x.max() < 30, x, x - x.mean(0)), [1, 1, 1]).refuses("form")
    # Each row by itself, and numbers that a model refuses, say nothing against it.
    assert not _learn(lambda x: x / x.abs().amax(-1, keepdim=True).clamp(min=50), [1, 2]).refuses("form")

    def small(x):
        if x.abs().max() > 30:
            raise ValueError("x must be small")
        return x.exp()

    assert not _learn(small, [1, 2]).refuses("form")


@pytest.mark.parametrize("mask", [-1e4, -1e9, float(torch.finfo(torch.float32).min)])
def test_masks_and_great_numbers_do_not_hide_that_rows_are_mixed(mask):
    torch.manual_seed(0)

    def masked(x):  # as a policy's forbidden moves are
        return torch.cat([x, torch.full((len(x), 5), mask)], 1)

    def stamped(x):
        return torch.cat([x, torch.arange(len(x)).view(-1, 1) * 0 + 1.7e9 + x[:, :1].round()], 1)

    for written in (masked, stamped):
        assert not _learn(lambda x, w=written: w(x + 1e-7 * torch.randn_like(x)), [1, 2]).refuses("form")
        assert _learn(lambda x, w=written: w(x + 0.01 * x.mean(0)), [1, 2]).refuses("form")


class Late(nn.Module):
    """Does what its keyword says; for some values, weights or calls its rows are not what they seemed."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))  # shut at first, as that of a new residual branch is
        self.register_buffer("mean", torch.zeros(4))
        self.last = None

    def forward(self, x, do):
        if do == "gate":
            return x + self.gate * (x - x.mean(0))
        if do == "write":
            x += 1
            return x[x[:, 0] < 1000]
        if do == "rare":
            if x.max() > 1000:
                x.zero_()
                raise ValueError("too great")
            return x * 2
        if do == "memo":
            if self.last is None or not torch.equal(self.last, x):
                self.last, self.doubled = x, x * 2
            return self.doubled
        if do == "trim":
            return x[:, : int((x != 0).sum(1).max())]
        self.mean.add_(1e-6 * (x.mean(0) - self.mean))  # by so little that it looks like rounding
        return x - self.mean


@pytest.fixture(scope="module")
def late():
    with Inferencer(Late(), timeout_s=100) as inferencer:
        yield inferencer


@torch.no_grad()
def test_weights_that_open_a_path_between_rows_are_noticed_before_anybody_is_answered(late):
    torch.manual_seed(0)
    model = Late()
    xs = [torch.randn(1, 4) for _ in range(16)]
    before = late.stats().batches
    for _ in range(20):
        late.multi_infer([(x, "gate") for x in xs])
    assert late.stats().batches - before < 20 * 16  # they shared calls
    model.gate.fill_(1.0)
    late.update_params(model.state_dict())
    for _ in range(3):
        for x, y in zip(xs, late.multi_infer([(x, "gate") for x in xs]), strict=True):
            assert torch.equal(y, model(x, do="gate"))


def test_rows_that_are_cut_to_the_longest_of_them_are_not_shared(late):
    for lengths in [(3,) * 8, (3,) * 8, (5,) * 8, (2, 7, 3) * 3, (3, 3, 4) * 3]:
        replies = _ask(late, [torch.tensor([[1] * n + [0] * (8 - n)]) for n in lengths], "trim")
        assert [y.shape[1] for y in replies] == list(lengths)


def test_model_that_writes_into_its_input_gets_it_anew_where_pieces_came_to_nothing(late):
    x = torch.arange(400.0).view(100, 4)  # more rows than a call takes
    for _ in range(4):  # the next call is none that is looked at
        assert torch.equal(late(x, do="write"), x + 1)
    x[70] = 5000.0  # whose row the model leaves out
    assert torch.equal(late(x, do="write"), torch.cat([x[:70], x[71:]]) + 1)


def test_model_that_writes_into_its_input_for_rare_values_and_fails_says_why_and_answers_for_no_other_input(late):
    x = torch.arange(400.0).view(100, 4)
    for _ in range(3):
        assert torch.equal(late(x, do="rare"), x * 2)
    x[70] = 5000.0
    for _ in range(2):
        with pytest.raises(RequestError, match=r"^ValueError: too great"):
            late(x, do="rare")
    assert torch.equal(late(x[:70], do="rare"), x[:70] * 2)


@pytest.mark.parametrize("n", [1, 4])
def test_model_keeps_an_input_to_compare_the_next_one_with(late, n):
    xs = [torch.full((1, 4), float(10 * n + i)) for i in range(5 * n)]
    for begin in range(0, len(xs), n):  # alone, and several as one message
        some = xs[begin : begin + n]
        answers = late.multi_infer([(x, "memo") for x in some]) if n > 1 else [late(*some, do="memo")]
        assert all(torch.equal(y, x * 2) for x, y in zip(some, answers, strict=True))


def test_model_that_writes_into_its_buffers_is_called_once_a_request(late):
    xs = [torch.randn(1, 4) for _ in range(4)]
    before = late.stats().batches
    for _ in range(10):
        _ask(late, xs, "average")
    assert late.stats().batches - before == 40  # a call more, to compare, would have moved them too


def _ask(inferencer, xs, do):
    """Returns the answers to requests that came together."""
    ids = [inferencer.infer_async(x, do=do) for x in xs]
    return [inferencer.wait_for_resp(i) for i in ids]


def test_rounding_is_told_from_mixing():
    torch.manual_seed(0)
    for scale in (1e-20, 1e-6, 1.0, 1e6):
        for offset in (0.0, 1000.0 * scale):

            def rounded(x, scale=scale, offset=offset):
                return x * scale + offset + 1e-7 * (scale + offset) * torch.randn_like(x)

            def mixed(x, scale=scale, offset=offset):
                return x * scale + offset + 0.1 * scale * x.mean(0)

            assert not _learn(rounded, [1, 2, 1]).refuses("form"), (scale, offset)
            assert _learn(mixed, [1, 2, 1]).refuses("form"), (scale, offset)
    noisy = nn.Linear(3, 3).bfloat16()
    assert not _learn(lambda x: noisy(x.bfloat16()).float(), [1, 4], coarsest=torch.bfloat16).refuses("form")
    assert not _learn(lambda x: x.log(), [2, 3]).refuses("form")  # NaN stays NaN


def test_numbers_in_an_output_and_models_that_draw_are_not_shared(caplog):
    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, "ai.infer"):
        assert _learn(lambda x: x + torch.rand_like(x), [1, 1]).refuses("form")
        assert _learn(lambda x: torch.zeros(len(x) // 2 * 2, 3), [1, 3]).refuses("form")
        assert _learn(lambda x: x[:1].expand(2, 3) if len(x) > 2 else x, [2, 1]).refuses("form")
    assert [record.getMessage().rsplit(": ")[-1] for record in caplog.records] == [
        "the output for a request depends on the other requests",
        "the output has not one row for each row of the input",
        "the output does not grow with the rows of the input",
    ]


def test_equal_integers_teach_nothing():
    sharing = _learn(lambda x: x - x.float().mean(0), [1, 1], values=lambda *s: torch.zeros(s, dtype=torch.long))
    assert not sharing.refuses("form")
    assert not sharing.allows("form", [1, 1], 2, 16)
