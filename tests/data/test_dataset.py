"""Dataset: what it takes, how it is cut."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from ai.data import Dataset
from ai.data.batch.shuffle import Stretch
from ai.data.storage.memory_mapped import Mapped


def numbers(n=10):
    return Dataset({"x": torch.arange(n), "y": np.arange(n, dtype=np.uint8)})


class Named(Dataset):
    pass


@pytest.mark.parametrize(
    "data",
    [torch.arange(6), np.arange(6), list(range(6)), range(6), [f"{i}" for i in range(6)], np.array(list("abcdef"))],
)
def test_length_and_items_of_every_kind_of_column(data):
    ds = Dataset(data)
    assert len(ds) == 6
    assert [str(ds[i]) if isinstance(ds[i], str) else int(ds[i]) for i in range(6)] == [
        item if isinstance(item, str) else int(item) for item in data
    ]
    assert ds[-1] == ds[5]


def test_numbers_in_any_container_come_as_tensors():
    for data in (range(6), list(range(6)), tuple(range(6)), np.arange(6)):
        assert torch.equal(next(iter(Dataset(data).loader(6))), torch.arange(6))


def test_stored_arrays_are_shared_not_copied():
    x = np.zeros((4, 2), np.float32)
    ds = Dataset({"x": x})
    x[1] = 7
    assert ds[1]["x"].tolist() == [7, 7]


def test_a_batch_owns_its_memory():
    ds = numbers()
    batch = next(iter(ds.loader(4)))
    batch["x"].zero_()
    assert ds[3]["x"] == 3


def test_read_only_and_foreign_byte_order_arrays_are_taken():
    x = np.arange(4, dtype=">i4")
    y = np.arange(4)
    y.flags.writeable = False
    ds = Dataset({"x": x, "y": y, "z": np.arange(4)[::-1]})
    assert [[int(v) for v in ds[i].values()] for i in range(4)] == [[0, 0, 3], [1, 1, 2], [2, 2, 1], [3, 3, 0]]


def test_length_counts_whole_batches():
    assert Dataset(range(63000)).length(64) == 62976


def test_items_are_pre_and_postprocessed():
    ds = Dataset({"x": [1, 2, 3], "y": [4, 5, 6]}, {"x": lambda v: v * 10}, {"x": lambda x: x + 0.5})
    assert ds[1]["x"] == 20.5
    assert ds[1]["y"] == 5
    assert Dataset([3, 4], lambda v: v + 1)[0] == 4


def test_split_by_ratio_is_a_seeded_partition():
    parts = numbers(100).split(0.7, 0.2, 0.1)
    assert [len(p) for p in parts] == [70, 20, 10]
    rows = [p.data["x"].tolist() for p in parts]
    assert sorted(x for row in rows for x in row) == list(range(100))
    assert rows[0] != sorted(rows[0])
    assert numbers(100).split(0.7, 0.2, 0.1)[0].data["x"].tolist() == rows[0]
    assert numbers(100).split(0.7, 0.2, 0.1, seed=1)[0].data["x"].tolist() != rows[0]


def test_counts_and_default_split_keep_the_order():
    ds = Dataset({"x": torch.arange(10)}, default_split=(7, 3))
    assert [p.data["x"].tolist() for p in ds.split()] == [list(range(7)), [7, 8, 9]]
    assert ds.split(4, 6)[0].data["x"].tolist() == [0, 1, 2, 3]
    assert [p.data["x"].tolist() for p in ds.split([0, 2], [9])] == [[0, 2], [9]]


def test_parts_keep_subclass_transforms_and_attributes():
    data = {"x": torch.arange(10), "y": [0, 1] * 5}
    ds = Named(data, postprocess={"x": lambda x: x * 2}, classes=["a", "b"])
    part = ds.split(0.5, 0.5)[0].filter(lambda s: s["x"] >= 0)[1:3].concat(ds)
    assert type(part) is Named
    assert part.classes == ("a", "b")
    assert len(part) == 12
    assert (part.loader(12).__iter__().__next__()["x"] == part.data["x"] * 2).all()


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ((0.5, 0.6), r"sum to 1, got \(0.5, 0.6\) with sum 1.1"),
        ((1.5, -0.5), r"must be positive and sum to 1, got \(1.5, -0.5\)"),
        ((0.999, 0.001), r"leave a part of the 10 samples empty"),
        ((5, 6), r"counts must be positive and sum to the 10 samples, got \(5, 6\)"),
        ((5, 0.5), r"all fractions, all counts or all index lists, got \(5, 0.5\)"),
        (("0.8", "0.2"), r"all fractions, all counts or all index lists, got \('0.8', '0.2'\)"),
        ((), "no default split"),
        (([0], [10]), r"indices must lie in \[0, 10\), got 10"),
    ],
)
def test_bad_splits_are_refused(ratios, message):
    with pytest.raises((ValueError, IndexError), match=message):
        numbers().split(*ratios)


def test_map_filter_slice_and_subset():
    ds = Dataset({"x": torch.arange(6)})
    assert ds.map(lambda s: {"x": s["x"] ** 2, "n": "a"}).data["x"].tolist() == [0, 1, 4, 9, 16, 25]
    assert ds.filter(lambda s: s["x"] % 2 == 0).data["x"].tolist() == [0, 2, 4]
    assert ds[4:1:-2].data["x"].tolist() == [4, 2]
    assert ds.subset([5, 0]).data["x"].tolist() == [5, 0]
    with pytest.raises(ValueError, match="accept at least one of the 6 samples"):
        ds.filter(lambda s: False)
    with pytest.raises(ValueError, match="at least one sample, got none"):
        ds[6:]
    with pytest.raises(IndexError, match=r"index \(6\) is out of range for 6 samples"):
        ds[6]


def test_concat_compares_columns():
    with pytest.raises(ValueError, match=r"equal columns, got \['x', 'y'\] and \['x'\]"):
        numbers().concat(Dataset({"x": torch.arange(3)}))
    with pytest.raises(ValueError, match=r"column 'x' must have one shape and dtype.*\(2,\)"):
        Dataset({"x": torch.zeros(2)}).concat(Dataset({"x": torch.zeros(2, 2)}))
    assert Dataset(["a"]).concat(Dataset(["b", "c"])).data == ["a", "b", "c"]


def test_samples_are_distinct_seeded_and_postprocessed():
    ds = Dataset({"x": torch.arange(100)}, postprocess={"x": lambda x: -x})
    x = ds.sample(100)["x"]
    assert sorted((-x).tolist()) == list(range(100))
    assert (ds.sample(10)["x"] == ds.sample(10)["x"]).all()
    assert (ds.sample(10)["x"] != ds.sample(10, seed=1)["x"]).any()
    with pytest.raises(ValueError, match=r"n must lie in \[1, 100\], got 101"):
        ds.sample(101)


def test_from_torch_reads_tuples_dicts_and_values():
    pairs = Dataset.from_torch(TensorDataset(torch.arange(4), torch.arange(4) * 2), default_split=(3, 1))
    assert pairs.data["y"].tolist() == [0, 2, 4, 6]
    assert len(pairs.split()[0]) == 3
    assert Dataset.from_torch([{"a": 1.0}, {"a": 2.0}]).data["a"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="at least one sample"):
        Dataset.from_torch([])


class Column:
    """A lazy column, as HuggingFace datasets have them."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return self.values[index]


def test_a_huggingface_dataset_becomes_columns():
    import datasets

    columns = {"x": [1, 2, 3], "text": ["a", "b", "c"], "pair": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}
    ds = Dataset(datasets.Dataset.from_dict(columns))
    batch = next(iter(ds.loader(2)))
    assert batch["x"].tolist() == [1, 2]
    assert batch["text"] == ["a", "b"]
    assert batch["pair"].tolist() == [[1, 2], [3, 4]]
    assert ds.split(0.4, 0.6)[1].sample(2)["pair"].shape == (2, 2)


def test_ragged_columns_of_a_huggingface_dataset_are_left_to_a_collate():
    import datasets

    ds = Dataset(datasets.Dataset.from_dict({"x": [[1], [1, 2], [3]]}))
    lengths = ds.loader(3, n_workers=0, collate=lambda rows: torch.tensor([len(row["x"]) for row in rows]))
    assert next(iter(lengths)).tolist() == [1, 2, 1]
    with pytest.raises(ValueError, match=r"got \(1,\) .* and \(2,\) .* sample 1 .* give a collate"):
        next(iter(ds.loader(3)))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"x": [1, 2], "y": [1]}, ValueError, r"equal lengths, got \{'x': 2, 'y': 1\}"),
        ([], ValueError, "at least one sample, got an empty one"),
        ({}, ValueError, "at least one column, got an empty dict"),
        ({"x": []}, ValueError, r"at least one sample, got columns of lengths \{'x': 0\}"),
        (3, TypeError, "data must be an array, a tensor, a list or a dict of these, got int"),
        ({"x": {"a": 1}}, TypeError, r"data\['x'\] must be an array.* got dict"),
        (np.zeros(2, np.longdouble), TypeError, "data must have a dtype that torch knows, got float128"),
        ({"x": "text"}, TypeError, r"data\['x'\] must be an array.* got str"),
        (torch.tensor(1), ValueError, "must have a leading sample axis"),
    ],
)
def test_bad_data_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        Dataset(data)


def test_lists_of_arrays_and_of_dicts_are_stacked_as_after_a_preprocess():
    for data in ([torch.full((2,), i) for i in range(3)], [{"a": i, "n": str(i)} for i in range(3)]):
        plain = next(iter(Dataset(data).loader(3)))
        mapped = next(iter(Dataset(data, lambda sample: sample).loader(3, n_workers=0)))
        assert str(plain) == str(mapped)
    assert Dataset([torch.full((2,), i) for i in range(3)])[2].tolist() == [2, 2]
    assert Dataset({"x": [np.ones(2), np.zeros(2)], "y": ["a", "b"]})[1]["x"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ((torch.zeros(10, 3), torch.arange(10)), "tuple of 2"),
        ((np.zeros((10, 3)), list(range(10))), "tuple of 2"),
        ((["a.png", "b.png"], [0, 1]), "tuple of 2"),
        ((torch.zeros(2, 2), torch.zeros(2)), "tuple of 2"),
        ((torch.zeros(5),), "tuple of 1"),
        ([torch.zeros(10, 3), torch.arange(10)], "list of 2"),
        ([np.linspace(0, 1, 10), np.linspace(1, 2, 10)], "list of 2"),
        ([np.zeros((10, 3)), list(range(10))], "list of 2"),
        ([torch.zeros(10, 3), torch.arange(10), torch.ones(10)], "list of 3"),
    ],
)
def test_columns_without_names_are_not_taken_for_samples(data, kind):
    with pytest.raises(TypeError, match=rf"must name its columns, got a {kind} arrays: give a dict .*'y': Y\}}, or"):
        Dataset(data)
    if len(data) > 1:
        assert len(Dataset(dict(zip("xyw", data, strict=False)))) == len(data[0])


@pytest.mark.parametrize(
    "data",
    [
        [torch.zeros(784) for _ in range(4)],
        [torch.zeros(2, 2), torch.zeros(2, 2)],
        [np.zeros(7), np.zeros(9)],
        [np.zeros(9)],
        [np.array(1), np.array(2)],
        [[1, 2, 3], [4, 5, 6]],
        [("a.png", 0), ("b.png", 1)],
        (("a.png", 0), ("b.png", 1)),
        ("a.png", "b.png"),
        (torch.tensor(3), torch.tensor(4)),
        [{"a": 1}, {"a": 2}],
    ],
)
def test_other_lists_hold_samples(data):
    assert len(Dataset(data)) == len(data)


def test_few_samples_of_a_longer_list_are_a_dataset():
    ds = Dataset([torch.full((5,), i) for i in range(9)])
    assert ds[2:4].data[1].tolist() == [3] * 5
    assert ds[8].tolist() == [8] * 5
    assert len(ds.split(2, 7)[0].concat(ds[:1])) == 3
    assert len(ds.filter(lambda sample: sample[0] > 6)) == 2


def test_an_item_whose_preprocess_returns_a_list_is_whole():
    assert [int(v) for v in Dataset(["a", "b"], lambda s: [1, 2])[0]] == [1, 2]
    with pytest.raises(TypeError, match="single values or dicts, got tuples or lists"):
        Dataset(["a", "b"]).map(lambda s: [1, 2])


def test_fields_of_records_and_labelled_series_are_taken_by_place():
    records = np.zeros(4, [("a", "i1"), ("x", "f4")])
    records["x"] = range(4)
    assert Dataset(records["x"])[3] == 3

    class Series:
        """As of pandas: [i] takes the label i, which may lie anywhere."""

        iloc = None

        def to_numpy(self):
            return np.array([5, 6, 7])

    assert next(iter(Dataset({"x": Series()}).loader(3)))["x"].tolist() == [5, 6, 7]


@pytest.mark.parametrize("indices", [[True, False, True], np.array([True, False]), [0.9, 0.1], torch.zeros(1, 1)])
def test_masks_and_fractions_are_no_indices(indices):
    with pytest.raises(ValueError, match=r"indices must be one row of whole numbers, got torch\.\w+ of shape"):
        numbers().subset(indices)
    with pytest.raises(ValueError, match=r"indices must be one row of whole numbers|ratios .* split\(0.9, 0.1\)"):
        numbers().split(indices)


def test_an_official_split_does_not_outlive_another_order():
    ds = Dataset(torch.arange(4), default_split=(3, 1))
    assert len(ds[:].split()) == 2
    for other in (ds.subset([3, 2, 1, 0]), ds[::-1], ds[:3]):
        with pytest.raises(ValueError, match="no default split"):
            other.split()


def test_bad_transforms_are_refused():
    with pytest.raises(TypeError, match="preprocess must be callable, got int"):
        Dataset([1], preprocess=3)
    with pytest.raises(TypeError, match=r"postprocess\['x'\] must be callable, got str"):
        Dataset({"x": [1]}, postprocess={"x": "a"})
    with pytest.raises(ValueError, match=r"preprocess names the keys \['z'\], the data has \['x'\]"):
        Dataset({"x": [1]}, preprocess={"z": str})
    with pytest.raises(ValueError, match=r"postprocess names the keys \['z'\], the data has \['x'\]"):
        Dataset({"x": [1]}, postprocess={"z": lambda v: v})
    ds = Dataset({"x": [1]}, lambda sample: {"y": sample["x"], 0: 1}, {"z": lambda v: v})  # who knows what that makes
    with pytest.raises(KeyError, match=r"functions for the keys \['z'\], the value has \[0, 'y'\]"):
        next(iter(ds.loader(1, n_workers=0)))


def test_what_comes_then_is_refused_where_it_names_a_key_that_no_batch_has():
    ds = Dataset({"x": torch.arange(3)}, postprocess={"x": lambda x: x + 1})
    with pytest.raises(ValueError, match=r"^postprocess names the keys \['image'\], the data has \['x'\]$"):
        ds.then({"image": abs})
    assert ds.then({"x": torch.neg}).sample(3)["x"].sort().values.tolist() == [-3, -2, -1]
    made = ds.then(lambda batch: {"image": batch["x"]}).then({"image": torch.neg})  # nobody knows before
    assert list(made.sample(3)) == ["image"]


def test_fingerprint_tells_data_apart():
    prints = {
        Dataset(data).fingerprint()
        for data in (torch.arange(5), torch.arange(5) + 1, torch.arange(5.0), {"x": torch.arange(5)}, ["a"], ["b"])
    }
    assert len(prints) == 6
    assert Dataset([Path("a")]).fingerprint() != Dataset([Path("b")]).fingerprint()
    assert Dataset([object()]).fingerprint() == Dataset([object()]).fingerprint()


def test_classes_are_names_and_hold_for_what_is_mapped_and_joined(tmp_path):
    ds = Dataset({"x": torch.arange(3), "y": torch.tensor([0, 1, 2])}, classes=["c", "a", "b"])
    with pytest.raises(ValueError, match="classes must be names, got 1"):
        Dataset({"y": torch.tensor([0, 1])}, classes=[1, 2])
    with pytest.raises(ValueError, match=r"data\['y'\] must lie in \[0, 3\), as classes says, got 20"):
        ds.map(lambda sample: {**sample, "y": sample["y"] * 10})
    with pytest.raises(ValueError, match=r"classes name the labels in data\['y'\], the data has \['x'\]"):
        ds.map(lambda sample: {"x": sample["x"]})
    labels = np.memmap(tmp_path / "y", np.int64, "w+", shape=(3,))
    labels[:] = [0, -1, 2]  # mapped labels are not looked at before they are joined
    other = Dataset({"x": torch.arange(3), "y": labels}, classes=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"must lie in \[0, 3\), as classes says, got -1"):
        ds.concat(other)


def test_from_torch_takes_the_classes_that_torchvision_proves(tmp_path):
    from PIL import Image
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.v2.functional import pil_to_tensor

    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    folder = ImageFolder(tmp_path, pil_to_tensor)
    assert Dataset.from_torch(folder).classes == ("cat", "dog")
    assert Dataset.from_torch(torch.utils.data.Subset(folder, [1])).classes == ("cat", "dog")
    assert Dataset.from_torch(folder, classes=["a", "b"]).classes == ("a", "b")
    assert Dataset.from_torch(ImageFolder(tmp_path, pil_to_tensor, lambda y: 1 - y)).classes is None
    assert Dataset.from_torch(torch.utils.data.TensorDataset(torch.zeros(2), torch.arange(2))).classes is None


@pytest.mark.parametrize("kind", ["memory", "file", "part of a file", "list"])
def test_parts_of_a_large_set_are_looked_up_and_hold_no_index(tmp_path, monkeypatch, kind):
    np.save(tmp_path / "x.npy", np.arange(200).reshape(100, 2))
    x = np.load(tmp_path / "x.npy", mmap_mode=None if kind in ("memory", "list") else "r")
    ds = Dataset({"x": x.tolist() if kind == "list" else x, "y": torch.arange(100)})
    ds = ds.subset(torch.arange(99, -1, -1)) if kind.startswith("part") else ds
    listed = ds.split(0.7, 0.2, 0.1, seed=3)
    monkeypatch.setattr("ai.data.dataset._INDEXED", 99)
    for part, expected in zip(ds.split(0.7, 0.2, 0.1, seed=3), listed, strict=True):
        assert len(part) == len(expected)
        assert part.fingerprint() == expected.fingerprint()
        for ours, theirs in zip(part.loader(3, train=True), islice(expected.loader(3, train=True), 40), strict=False):
            assert all(np.array_equal(ours[key], theirs[key]) for key in ("x", "y"))
        assert np.array_equal(np.asarray(part.data["x"]), np.asarray(expected.data["x"]))
        assert [part[2]["y"], part[-1]["y"]] == [expected[2]["y"], expected[-1]["y"]]
        assert part[1:5].data["y"].tolist() == expected[1:5].data["y"].tolist()
    if kind == "file":
        assert isinstance(part.data["x"].rows, Stretch)
        assert np.array_equal(np.stack(list(part.data["x"])), np.asarray(expected.data["x"]))
        whole = part.concat(ds.split(0.7, 0.2, 0.1, seed=3)[0])
        assert sorted(whole.data["y"].tolist()) == sorted(
            [*listed[2].data["y"].tolist(), *listed[0].data["y"].tolist()]
        )
        assert np.array_equal(np.asarray(whole.data["x"])[:, 0] // 2, whole.data["y"])


def test_parts_of_a_hundred_million_rows_are_made_at_once():
    rows = torch.zeros(1).expand(10**8)  # which would take 400 MB
    parts = Dataset(rows.as_subclass(Mapped)).split(0.9, 0.1)
    assert [len(part) for part in parts] == [9 * 10**7, 10**7]
    drawn = [part.data.rows[torch.arange(1000)] for part in parts]
    assert len(torch.cat(drawn).unique()) == 2000
    assert all(abs(float(places.double().mean()) / 10**8 - 0.5) < 0.05 for places in drawn)
