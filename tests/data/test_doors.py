"""Every argument of every public callable is looked at there: what it cannot be is named, with its rule and value."""

import math
import tempfile
import types
import typing
from collections.abc import Callable, Iterator
from inspect import Parameter, ismodule, signature
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ai.data as d
from ai.data import augment, sampling, toy
from ai.data.generation.options import DatagenOptions, PassesOptions
from ai.data.loading.options import LoaderOptions
from ai.data.util import create_data_loader


class Coins:
    def start(self, seed, worker):
        self.rng = np.random.default_rng(seed)

    def update_params(self, state_dict, version):
        pass

    def __next__(self):
        return {"obs": np.zeros((4, 1)), "action": self.rng.integers(0, 2, 3), "reward": np.ones(3)}


def ds():
    return d.Dataset({"x": torch.arange(40.0), "y": torch.arange(40) % 3})


def halves(*, seed: int = 0, stratify: str | None = None):
    return ds().split(0.5, 0.5, seed=seed, stratify=stratify)


def stream():
    return create_data_loader(type("Numbers", (), {"__iter__": lambda self: iter(range(9))})(), 4, n_workers=0)


def buffer(**how):
    made = d.ReplayBuffer(100, n_step=1, **how)
    made.add({"obs": np.arange(21), "action": np.zeros(20), "reward": np.ones(20)})
    return made


def shards():
    folder = tempfile.mkdtemp()
    with open(f"{folder}/a.txt", "w") as file:
        file.write("1\n2\n")
    return d.Shards(folder)


def of(made, method):
    """Returns a method of what `made()` makes, made when it is called, with the signature of the method."""

    def call(*args, **kwargs):
        return getattr(made(), method)(*args, **kwargs)

    call.__signature__ = signature(getattr(made(), method))
    return call


_COLUMNS = {key: np.ones(3, np.float32) for key in ("reward", "discount", "value")}
_RETURNS = {"columns": _COLUMNS, "lengths": np.array([3]), "gamma": 0.9}
# Each door with what it needs to be called; one argument at a time is wrong.
DOORS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "Dataset": (d.Dataset, {"data": torch.arange(4)}),
    "Dataset.length": (of(ds, "length"), {"batch_size": 4}),
    "Dataset.loader": (of(ds, "loader"), {"batch_size": 4, "n_workers": 0}),
    "Dataset.sample": (of(ds, "sample"), {"n": 4}),
    "Dataset.split": (halves, {}),
    "Dataset.subset": (of(ds, "subset"), {"indices": [1]}),
    "Dataset.map": (of(ds, "map"), {}),
    "Dataset.filter": (of(ds, "filter"), {}),
    "Dataset.then": (of(ds, "then"), {}),
    "DataLoader": (d.DataLoader, {"dataset": ds(), "batch_size": 4, "n_workers": 0}),
    "DataLoader.shard": (of(lambda: ds().loader(4), "shard"), {"rank": 0, "world": 2}),
    "DataLoader.load_state_dict": (of(lambda: ds().loader(4), "load_state_dict"), {}),
    "create_data_loader": (create_data_loader, {"torch_dataset": range(9), "batch_size": 4, "n_workers": 0}),
    "StreamLoader.shard": (of(stream, "shard"), {"rank": 0, "world": 2}),
    "StreamLoader.load_state_dict": (of(stream, "load_state_dict"), {}),
    "Shards": (d.Shards, {"paths": "nowhere"}),
    "Shards.part_of_rank": (of(shards, "part_of_rank"), {"rank": 0, "world": 1}),
    "Shards.set_epoch": (of(shards, "set_epoch"), {}),
    "Shards.load_state_dict": (of(shards, "load_state_dict"), {}),
    "write_shards": (d.write_shards, {"dataset": ds(), "folder": "/dev/null/never-made", "n_workers": 0}),
    "Datagen": (d.Datagen, {"source": Coins()}),
    "DatagenLoader": (d.DatagenLoader, {"datagen": d.Datagen(Coins()), "batch_size": 4, "n_workers": 0}),
    "Datagen.loader": (of(lambda: d.Datagen(Coins()), "loader"), {"batch_size": 4, "n_workers": 0}),
    "DatagenLoader.wants_params": (of(lambda: d.Datagen(Coins()).loader(4, n_workers=0), "wants_params"), {}),
    "DatagenLoader.shard": (
        of(lambda: d.Datagen(Coins()).loader(4, n_workers=0), "shard"),
        {"rank": 0, "world": 2},
    ),
    "DatagenLoader.load_state_dict": (of(lambda: d.Datagen(Coins()).loader(4, n_workers=0), "load_state_dict"), {}),
    "DatagenLoader.update_params": (of(lambda: d.Datagen(Coins()).loader(4, n_workers=0), "update_params"), {}),
    "Datagen.passes": (of(lambda: d.Datagen(Coins()), "passes"), {"passes": 1}),
    "PassesLoader.wants_params": (of(lambda: d.Datagen(Coins()).passes(1), "wants_params"), {}),
    "PassesLoader.shard": (of(lambda: d.Datagen(Coins()).passes(1), "shard"), {"rank": 0, "world": 2}),
    "PassesLoader.load_state_dict": (of(lambda: d.Datagen(Coins()).passes(1), "load_state_dict"), {}),
    "PassesLoader.update_params": (of(lambda: d.Datagen(Coins()).passes(1), "update_params"), {}),
    "Draws": (d.Draws, {"buffer": buffer(), "batch_size": 4}),
    "Draws.shard": (of(lambda: d.Draws(buffer(), 4), "shard"), {"rank": 0, "world": 2}),
    "Draws.load_state_dict": (of(lambda: d.Draws(buffer(), 4), "load_state_dict"), {}),
    "Hindsight": (d.Hindsight, {"source": Coins(), "reward": print}),
    "ReplayBuffer": (d.ReplayBuffer, {"capacity": 10}),
    "ReplayBuffer.sample": (of(buffer, "sample"), {}),
    "ReplayBuffer.column": (of(buffer, "column"), {}),
    "ReplayBuffer.add": (of(buffer, "add"), {}),
    "ReplayBuffer.extend": (of(buffer, "extend"), {}),
    "ReplayBuffer.episode": (of(buffer, "episode"), {}),
    "ReplayBuffer.draw_apart": (of(buffer, "draw_apart"), {"rank": 0, "world": 2}),
    "ReplayBuffer.load_state_dict": (of(buffer, "load_state_dict"), {}),
    "ReplayBuffer.update_priorities": (
        of(lambda: buffer(alpha=1.0), "update_priorities"),
        {"index": torch.tensor([0]), "priority": torch.ones(1)},
    ),
    "ReplayBuffer.update": (of(buffer, "update"), {}),
    "lambda_returns": (d.lambda_returns, _RETURNS),
    "vtrace_returns": (d.vtrace_returns, {**_RETURNS, "ratio": np.ones(3)}),
    "packed_tokens": (d.packed_tokens, {"documents": [[1, 2, 3, 4]], "length": 2}),
    "block_mask": (d.block_mask, {}),
    "padded": (d.padded, {}),
    "packs": (d.packs, {}),
    "ImgDataset": (d.ImgDataset, {"path": "nowhere", "imsize": 8}),
    "Ray": (d.Ray, {}),
    "mnist_dataset": (d.mnist_dataset, {}),
    "fashion_mnist_dataset": (d.fashion_mnist_dataset, {}),
    "cifar_dataset": (d.cifar_dataset, {}),
    "digits_dataset": (d.digits_dataset, {}),
    **{
        f"augment.{name}": (getattr(augment, name), {"padding": 2, "n_classes": 3, "size": 4})
        for name in augment.__all__
    },
    "sampling.weighted": (sampling.weighted, {}),
    "sampling.balanced": (sampling.balanced, {}),
    "sampling.by_length": (sampling.by_length, {"lengths": [1, 2, 3]}),
    "sampling.in_blocks": (sampling.in_blocks, {"n": 10}),
    **{
        f"toy.{name}": (found, {"n": 8})
        for name, found in vars(toy).items()
        if name.endswith("_dataset")
    },
}  # fmt: skip
_NO_DOORS = {"Episode", "Packed", "PreprocessError", "Source", "WorkerFailedError"}  # protocols, records and errors
# A fraction beside counts, and labels and text that are no numbers, each in its own test.
_TAKES_ANYTHING = {("Dataset", "data"), ("create_data_loader", "torch_dataset"), ("padded", "value")}
_TAKES_ANYTHING |= {("ImgDataset", "classes")}


def _hints(door: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Yields the arguments of a door with their types; options that it passes on are arguments of it."""
    for parameter in signature(door).parameters.values():
        hint = parameter.annotation
        if parameter.kind is Parameter.VAR_KEYWORD:
            options = typing.get_args(hint)
            if options and options[0] in (LoaderOptions, DatagenOptions, PassesOptions):
                yield from typing.get_type_hints(options[0]).items()
        elif parameter.kind is not Parameter.VAR_POSITIONAL:
            yield parameter.name, hint


def _wrong(hint: Any) -> list[Any]:
    """Returns what an argument of a type cannot be."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    none = [] if type(None) in kinds else [None]
    one, two = torch.tensor(2), torch.tensor([2, 3])
    if kinds[0] is bool:
        return ["no", 1, torch.tensor(True), *none]
    if kinds[0] is float:
        return ["3", math.nan, True, torch.tensor(0.5), two, *none]
    if kinds[0] is int:
        return [1.5, "3", True, math.nan, one, np.array(2), two, 1 << 70, *none]
    if kinds[0] is Tensor:
        return [5, "text", [1], None]
    if int in kinds:
        return [1.5, "3", True, object()]
    text = [5, {}, object(), torch.tensor(3.0), *none]
    return text if kinds[0] is str else [] if hint is Parameter.empty else [5, object()]


CASES = {
    f"{name}({argument})": (door, needed, argument, wrong)
    for name, (door, needed) in DOORS.items()
    for argument, hint in _hints(door)
    if (name, argument) not in _TAKES_ANYTHING and (wrong := _wrong(hint))
}


@pytest.mark.parametrize("case", CASES)
def test_what_an_argument_cannot_be_is_named_at_the_door(case):
    door, needed, argument, wrong = CASES[case]
    takes = {name for name, _ in _hints(door)}
    given = {name: value for name, value in needed.items() if name in takes}
    called = {"episode": "an episode", "state": "state", "key": "is not a key"}.get(argument, argument)
    for value in wrong:
        with pytest.raises((TypeError, ValueError, KeyError)) as refused:
            door(**{**given, argument: value})
        said = str(refused.value)
        assert called in said, said
        assert "\n" not in said.strip()
        shown = {repr(value), str(value), type(value).__name__, f"{value} "}
        by_shape = isinstance(value, Tensor | np.ndarray | dict | list) or "got ()" in said
        assert by_shape or any(form in said for form in shown), said


def test_every_public_callable_has_its_door():
    public = {name for name in d.__all__ if not ismodule(getattr(d, name))}
    walked = {name.partition(".")[0] for name in DOORS}
    assert public - walked == _NO_DOORS
    assert len(CASES) > 150
    for name in ("augment", "sampling", "toy"):
        home = getattr(d, name)
        made = {key for key, found in vars(home).items() if callable(found) and found.__module__.startswith("ai.data")}
        ours = {key for key in made if key.islower() and not key.startswith("_")} & set(getattr(home, "__all__", made))
        own = {key for key in ours if getattr(home, key).__module__.startswith(f"ai.data.{name}")}
        assert {f"{name}.{key}" for key in own} <= DOORS.keys()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ds().split("3"), r"a split must be all fractions, all counts or all index lists, got \('3',\)"),
        (lambda: ds().split(["a"]), r"indices must be one row of whole numbers, got \['a'\]"),
        (lambda: ds().split({"a": 1}), r"indices must be one row of whole numbers, got \{'a': 1\}"),
        (lambda: ds().split(torch.tensor(2)), r"indices must be one row of whole numbers, got tensor\(2\)"),
        (lambda: ds().split(0.5, 0.5, stratify=["y"]), r"stratify must name a column .*, got \['y'\]"),
        (lambda: ds()["3"], "index must be a whole number or a slice, got '3'"),
        (lambda: ds()[torch.tensor([2, 3])], r"index must be a whole number or a slice, got tensor\(\[2, 3\]\)"),
        (lambda: ds().concat(ds(), 5), r"others\[1\] must be an ai.data.Dataset, got int"),
        (lambda: ds().concat(d.Dataset), r"others\[0\] must be an ai.data.Dataset, got the class Dataset"),
        (lambda: d.Dataset.from_torch({"a": 1}), "torch_dataset must be a map-style dataset, got dict"),
        (lambda: d.Dataset.from_torch("text"), "torch_dataset must be a map-style dataset, got str"),
        (lambda: d.padded("x", value="3"), "value must be a number, got '3'"),
        (lambda: d.padded(3), "keys must be names of entries, got 3"),
        (lambda: d.padded(value=math.nan)([np.array([1])]), "value must be one that 'x' can hold, int64, got nan"),
        (lambda: sampling.weighted(["a"]), r"weights must be one number a sample, got \['a'\]"),
        (lambda: sampling.weighted([[1], [2, 3]]), r"weights must be one number a sample, got \[\[1\], \[2, 3\]\]"),
        (lambda: sampling.weighted([1, math.nan]), "weights must be finite numbers of at least 0"),
        (lambda: sampling.balanced([1.5]), "labels must be one whole number a sample, got float64"),
        (lambda: sampling.by_length([3, math.nan]), "lengths must be at least 0, got nan"),
        (lambda: sampling.by_length([3, -1]), "lengths must be at least 0, got -1"),
        (lambda: augment.random_resized_crop((2, 1.5)), "size must be a whole number, got 1.5"),
        (lambda: augment.random_resized_crop((1, 2, 3)), r"size must be two numbers, got \(1, 2, 3\)"),
        (lambda: augment.random_resized_crop(4, scale=0.5), "scale must be two numbers, got 0.5"),
        (lambda: augment.random_resized_crop(4, scale=(0.5, math.nan)), "scale must be a number, got nan"),
        (lambda: augment.random_resized_crop(4, ratio=(1, math.inf)), "ratio must be two rising finite numbers"),
        (lambda: augment.crop(2, "text"), "mode must be one of constant, reflect, replicate, circular, got 'text'"),
        (lambda: toy.moons_dataset(-1), "n must be at least 1, got -1"),
        (lambda: toy.moons_dataset(8, noise=math.inf), "noise must be at least 0 and finite, got inf"),
        (lambda: toy.moons_dataset(8, mult=math.inf), "mult must be finite, got inf"),
        (lambda: d.vtrace_returns(**_RETURNS, ratio=np.ones(3), rho_max=-1.0), "rho_max must be at least 0, got -1.0"),
        (lambda: d.lambda_returns(**{**_RETURNS, "lengths": [math.nan]}), "lengths must be one row of whole numbers"),
        (lambda: d.ReplayBuffer(10, next_keys=(3,)), r"next_keys must be a tuple of keys, got \(3,\)"),
        (lambda: shards().set_epoch(-1), "epoch must be at least 0, got -1"),
        (lambda: d.Datagen(Coins()).passes(1).wants_params(0), "batches must be at least 1, got 0"),
        (lambda: ds().loader(4, n_workers=1 << 17), "n_workers must be at most 65536, got 131072"),
        (lambda: d.Datagen(Coins()).loader(4, n_workers=1 << 17), "n_workers must be at most 65536, got 131072"),
        (lambda: ds().loader(4, prefetch=1 << 21), "prefetch must be at most 1048576, got 2097152"),
        (lambda: d.ReplayBuffer(10, seed=1 << 64), "seed must be a number of 64 bits, got 18446744073709551616"),
        (lambda: d.digits_dataset(0), "size must be at least 1 pixel, got 0"),
    ],
)
def test_what_is_out_of_range_is_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_an_item_is_found_by_the_numbers_of_a_permutation():
    for place in (3, np.int64(3), torch.tensor(3)):
        assert ds()[place]["x"] == 3


def test_numbers_of_numpy_are_numbers_and_none_ends_up_in_a_state():
    two = np.int64(2)
    loader = ds().loader(two, train=np.bool_(True), n_workers=0, seed=two)
    shared = create_data_loader(type("N", (), {"__iter__": lambda self: iter(range(9))})(), two, n_workers=0, seed=two)
    passes = d.Datagen(Coins()).passes(1, seed=two)
    for made in (loader, shared, passes, d.ReplayBuffer(np.int64(10), seed=two)):
        assert not [value for value in made.state_dict().values() if isinstance(value, np.generic)]
    assert next(iter(ds().loader(2, sampler=sampling.in_blocks(np.int64(40), two, two))))["x"].shape == (2,)
    assert callable(augment.random_resized_crop(two))
    assert len(toy.moons_dataset(np.int64(8), noise=np.float32(0.1), seed=np.uint8(3))) == 8
    assert d.packed_tokens([[1, 2, 3, 4]], two)[0]["x"].tolist() == [1, 2]


def test_a_class_in_place_of_its_instance_is_named():
    with pytest.raises(TypeError, match=r"^source must be an instance: Coins\(...\), not the class Coins$"):
        d.Datagen(Coins)
    with pytest.raises(TypeError, match=r"^torch_dataset must be an instance: Dataset\(...\), not the class Dataset$"):
        create_data_loader(d.Dataset, 4)
