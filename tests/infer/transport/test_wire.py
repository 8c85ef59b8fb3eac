import json
import random
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ai.infer.transport.errors import WireError
from ai.infer.transport.spin import Spinner
from ai.infer.transport.trees import RawTensor, flatten, unflatten
from ai.infer.transport.wire import layout_of, make_layout, packed, parse, raw_call
from ai.infer.worker.batch_limit import BatchLimit
from ai.infer.worker.request_queue import RequestQueue

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool, torch.complex64]
tensors = st.builds(
    lambda shape, dtype: torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype),
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from(DTYPES),
)
leaves = tensors | st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype is b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@settings(max_examples=150, deadline=None)
@given(trees)
def test_any_tree_comes_back_as_it_went(tree):
    node, found = flatten(tree)
    layout = layout_of(node, found)
    read = parse(layout.header)
    assert (read.offsets, read.n_bytes, read.rows, read.group) == (
        layout.offsets,
        layout.n_bytes,
        layout.rows,
        layout.group,
    )
    data = torch.zeros(layout.n_bytes, dtype=torch.uint8)
    for view, x in zip(layout.views(data), found, strict=True):
        view.copy_(x)
    assert same(unflatten(read.tree, iter(read.views(data))), tree)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_rubbish_is_refused_and_nothing_else_happens(data):
    try:
        parse(data)
    except WireError:
        pass


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["t", "c", "l", "u", "d", "o", "n"]),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(json_values)
def test_json_that_is_no_header_is_refused(value):
    try:
        layout = parse(json.dumps(value).encode())
    except WireError:
        return
    assert parse(layout.header).offsets == layout.offsets  # the rare value that is one


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([["t"]], r"a header's tree has 1 tensors, and 0 are described"),
        ([["x"]], r"a header's node must have a known kind, not 'x'"),
        ([["d", [1.5, ["t"]]], ["float32", 1]], r"a header's dict must hold pairs of key and node"),
        ([["t"], ["float32", -1]], r"a shape must hold up to 64 sizes from 0, not \[-1\]"),
        ([["t"], ["float32", True]], r"a header's shape must hold whole numbers, not \[True\]"),
        ([["t"], ["float32", 1 << 40, 1 << 40]], r"a shape must fit in memory"),
        ([["t"], ["object", 1]], r"a header must be a tree and its tensors in JSON: KeyError"),
        ([["o", 5]], r"a header's node of kind 'o' must name its class"),
    ],
)
def test_header_errors_name_the_rule(document, message):
    with pytest.raises(WireError, match=message):
        parse(json.dumps(document).encode())


def test_a_strangers_message_names_only_dataclasses_and_named_tuples_that_are_there():
    for name, message in [
        ("os:system", "must be a dataclass or a named tuple"),
        ("builtins:dict", "must be a dataclass or a named tuple"),
        ("no_such_module:X", "must be one that the worker's model has imported"),
        ("this:d", "must be one that the worker's model has imported"),
        ("torch:nn.no_such_thing", "must be one that the worker's model has imported"),
    ]:
        with pytest.raises(WireError, match=message):
            unflatten(["o", name], iter([]))
    assert "this" not in sys.modules
    with pytest.raises(WireError, match="must be importable here"):
        unflatten(["o", "no_such_module:X"], iter([]), trusted=True)


@dataclass
class Loud:
    x: int
    twice: int = field(init=False, default=0)

    def __post_init__(self):
        global n_made
        n_made += 1
        self.twice = 2 * self.x


class Named(NamedTuple):
    x: int


n_made = 0


def test_no_code_of_a_strangers_class_runs_and_its_fields_arrive():
    sys.modules.setdefault(__name__, sys.modules[Loud.__module__])
    node, _ = flatten((Loud(3), Named(4)))
    before = n_made
    loud, named = unflatten(node, iter([]))
    assert (type(loud), loud.x, loud.twice, type(named), named.x, n_made) == (Loud, 3, 6, Named, 4, before)
    assert unflatten(node, iter([]), trusted=True)[0] == loud
    assert n_made == before + 1
    for bad, message in [
        (["o", f"{__name__}:Loud", ["y", ["c", 1]]], "has no field 'y'"),
        (["o", f"{__name__}:Loud"], "must have its field 'x'"),
        (["n", f"{__name__}:Named"], "must be a named tuple of 0 fields"),
        (["n", f"{__name__}:Loud", ["c", 1]], "must be a named tuple of 1 fields"),
        (["o", f"{__name__}:Named", ["x", ["c", 1]]], "must be a plain dataclass"),
    ]:
        with pytest.raises(WireError, match=message):
            unflatten(bad, iter([]))


def test_text_and_bytes_travel_whatever_their_length():
    tree = ["é" * 300, "short", b"\x00\xff" * 4, b"", "\ud800" * 300, {"b": "s", "s": b"b"}]
    node, found = flatten(tree)
    layout = layout_of(node, found)
    data = torch.zeros(max(layout.n_bytes, 1), dtype=torch.uint8)
    for view, x in zip(layout.views(data), found, strict=True):
        view.copy_(x)
    read = parse(layout.header)
    assert unflatten(read.tree, iter(read.views(data))) == tree
    assert read.rows is None


def test_channels_last_travels_as_it_lies_in_memory():
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    layout = parse(layout_of(["t"], [x]).header)
    data = torch.zeros(layout.n_bytes, dtype=torch.uint8)
    (view,) = layout.views(data)
    view.copy_(x)
    assert view.stride() == x.stride()
    assert torch.equal(data.view(torch.float32)[: x.numel()], x.permute(0, 2, 3, 1).reshape(-1))
    (raw,) = layout.raw(data.numpy().data)
    assert raw.data == x.contiguous().numpy().tobytes()
    assert layout.group != layout_of(["t"], [x.contiguous()]).group


def test_requests_that_travel_together_say_how_many_rows_each_has():
    one = make_layout(["t"], [torch.float32], [(3, 2)])
    together = parse(packed(one, (3, 1, 2)).header)
    assert (together.parts, together.rows, together.group, together.shapes) == ((3, 1, 2), 6, one.group, ((6, 2),))
    for parts, shape, message in [
        ([3, 1], 6, r"must have 4 rows in all, not 6"),
        ([], 6, r"must hold up to 4096 numbers of rows"),
        ([6, 0], 6, r"must have rows from 1, not \[6, 0\]"),
        ([6.0], 6, r"must have rows from 1"),
        ([1] * 4097, 4097, r"must hold up to 4096 numbers of rows"),
    ]:
        with pytest.raises(WireError, match=message):
            parse(json.dumps([["p", parts, ["t"]], ["float32", shape, 2]]).encode())
    with pytest.raises(WireError, match="must have a known kind, not 'p'"):
        parse(json.dumps([["l", ["p", [1], ["t"]]], ["float32", 1]]).encode())


def test_deep_trees_are_refused():
    deep = ["t"]
    for _ in range(100):
        deep = ["l", deep]
    with pytest.raises(WireError, match="at most 64 deep"):
        parse(json.dumps([deep, ["float32", 1]]).encode())
    with pytest.raises(WireError, match="must be a tree"):
        parse(b"[" * 60000)


def test_rows_and_groups():
    def layout(*shapes):
        return make_layout(["u", *[["t"]] * len(shapes)], [torch.float32] * len(shapes), list(shapes))

    assert layout((3, 2), (3,)).rows == 3
    assert layout((3, 2), (4, 2)).rows is None
    assert layout((3, 2), ()).rows is None
    assert layout((0, 2)).rows is None
    assert layout((1 << 39, 0)).rows is None  # nobody is to cut this into batches
    assert layout((3, 2)).group == layout((5, 2)).group != layout((3, 1)).group
    assert packed(layout((3, 2), (3,)), (3, 4)).shapes == ((7, 2), (7,))


class Item:
    def __init__(self, rows, arrived=0.0, client=None):
        self.rows, self.arrived, self.client = rows, arrived, client


def test_batches_count_rows_keep_order_and_never_mix_groups():
    queue = RequestQueue(max_rows=4)
    items = [Item(2, 0), Item(1, 1), Item(2, 2), Item(9, 3), Item(1, 4)]
    for item, group in zip(items, ["a", "b", "a", "a", None], strict=True):
        queue.put(item, group)
    assert queue.next_batch() == [items[0], items[2]]
    assert queue.next_batch() == [items[1]]
    assert queue.next_batch() == [items[3]]  # larger than a batch: alone
    assert queue.next_batch() == [items[4]]
    assert queue.next_batch() == []


def test_the_line_whose_first_request_waits_longest_is_next_whatever_came_and_went():
    draw = random.Random(0)
    queue = RequestQueue(max_rows=3)
    clients = [object() for _ in range(3)]
    waiting = []
    for arrived in range(2000):
        client, group = draw.choice(clients), draw.choice(["a", "b", "c", None])
        request = SimpleNamespace(rows=1, arrived=float(arrived), client=client, group=group)
        queue.put(request, group)
        waiting.append(request)
        if draw.random() < 0.02:
            queue.drop(clients[0])
            waiting = [each for each in waiting if each.client is not clients[0]]
        for _ in range(draw.choice([0, 0, 0, 1, 5]) if waiting else 0):
            batch = queue.next_batch()
            same = [each for each in waiting if each.group == waiting[0].group] if waiting else []
            assert batch == same[: 3 if same and same[0].group else 1]
            waiting = [each for each in waiting if each not in batch]
        assert queue.n_requests == len(waiting)


def test_requests_without_a_group_run_alone():
    queue = RequestQueue(max_rows=8)
    for _ in range(3):
        queue.put(Item(1), None)
    assert [len(queue.next_batch()) for _ in range(3)] == [1, 1, 1]


def test_dropped_client_leaves_the_others_requests():
    queue = RequestQueue(max_rows=8)
    clients = object(), object()
    for i in range(6):
        queue.put(Item(1, client=clients[i % 2]), "a")
    queue.drop(clients[0])
    assert queue.n_requests == 3
    assert {item.client for item in queue.next_batch()} == {clients[1]}


def test_row_cap_grows_while_it_pays():
    cap = BatchLimit(start=8, limit=1024)
    for _ in range(200):  # 1 ms a call whatever the rows, up to 64; beyond, in proportion
        cap.update(cap.rows, 0.001 * max(1.0, cap.rows / 64), backlog=True)
    assert cap.rows == 64


def test_row_cap_stays_without_a_backlog():
    cap = BatchLimit(start=8)
    for _ in range(200):
        cap.update(8, 0.001, backlog=False)
    assert cap.rows == 8


def test_spinner_gives_up_on_what_never_comes():
    spinner = Spinner()
    spinner._enabled = True
    asked = [0]

    def never():
        asked[0] += 1
        return False

    tries = 0
    for _ in range(500):
        before = asked[0]
        assert not spinner.wait(never)
        tries += asked[0] > before
    assert tries < 15
    spinner._skips = 0
    assert spinner.wait(lambda: True)


@pytest.mark.parametrize("n_bytes", [0, 11, 13, 24])
def test_raw_tensors_have_the_bytes_of_their_shape(n_bytes):
    good = RawTensor(torch.float32, (1, 3), bytes(12))
    layout, tensors = raw_call([good, [b"text", good]])
    assert (layout.lengths, [len(x.data) for x in tensors]) == ((12, 4, 12), [12, 4, 12])
    bad = RawTensor(torch.float32, (1, 3), bytes(n_bytes))
    for inputs in ([bad], [good, bad], [[b"text", bad]]):
        with pytest.raises(WireError, match=rf"shape \[1, 3\] must have 12 bytes, not {n_bytes}"):
            raw_call(inputs)


def test_a_shape_that_only_equals_another_leaves_no_form_behind_for_it():
    """Forms are kept by their shapes, and True and 2.0 are found where 1 and 2 are."""
    data = bytes(8)
    for size, whole in ((True, 1), (np.int64(7), 7)):
        first = raw_call([RawTensor(torch.int8, (size, 0, 5), b"")])[0]
        assert first is raw_call([RawTensor(torch.int8, (whole, 0, 5), b"")])[0]
        assert (first.shapes, parse(first.header).shapes) == (((whole, 0, 5),),) * 2
    for shape, rule in (((4.0, 2), "whole numbers"), ((-4, -2), "sizes from 0"), ((1 << 40, 1 << 40, 0), "in memory")):
        with pytest.raises(WireError, match=rf"a shape must .*{rule}"):
            raw_call([RawTensor(torch.int8, shape, data)])
    assert raw_call([RawTensor(torch.int8, (4, 2), data)])[0].lengths == (8,)
