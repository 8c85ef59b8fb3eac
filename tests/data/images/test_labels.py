"""Labels keep what they mean: across folders, gaps, skipped files and joined datasets."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ai.data import Dataset, ImgDataset


def folder_of(root, *classes):
    for name in classes:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / name / "a.png")
    return root


def load(root, **options):
    return ImgDataset(root, 4, cache=root.parent / "packs", **{"labels": "folder", **options})


def meanings(ds):
    return [ds.classes[y] for y in ds.data["y"].tolist()]


def test_classes_fix_the_numbers_across_folders(tmp_path):
    train = load(folder_of(tmp_path / "train", "cat", "dog", "fox"))
    val = load(folder_of(tmp_path / "val", "cat", "fox"), classes=train.classes)
    assert val.data["y"].tolist() == [0, 2]
    assert val.classes == ("cat", "dog", "fox")
    with pytest.raises(ValueError, match=r"classes must hold every label in the folder .*, 'fox' of fox/a\.png is not"):
        load(tmp_path / "val", classes=["cat", "dog"])
    with pytest.raises(ValueError, match="classes must name each class once, got cat, cat"):
        load(tmp_path / "val", classes=["cat", "cat"])


def test_concat_keeps_a_fox_a_fox(tmp_path):
    train = load(folder_of(tmp_path / "train", "cat", "dog", "fox"))
    val = load(folder_of(tmp_path / "val", "ape", "cat", "fox"))
    both = train.concat(val)
    assert both.classes == ("cat", "dog", "fox", "ape")
    assert meanings(both) == ["cat", "dog", "fox", "ape", "cat", "fox"]
    assert meanings(val.concat(train)) == ["ape", "cat", "fox", "cat", "dog", "fox"]
    assert val.data["y"].tolist() == [0, 1, 2]


def test_concat_refuses_what_it_cannot_number():
    x = {"x": torch.zeros(2), "y": torch.tensor([0, 1])}
    named, plain = Dataset(x, classes=["a", "b"]), Dataset(x)
    with pytest.raises(ValueError, match="datasets must all have classes or none"):
        named.concat(plain)
    shares = Dataset({"x": torch.zeros(2), "y": torch.eye(2)}, classes=["b", "a"])
    with pytest.raises(ValueError, match=r"different classes need y as one whole number a sample, got torch\.float32"):
        named.concat(shares)
    assert plain.concat(plain).classes is None
    many = Dataset({"x": torch.zeros(1), "y": torch.tensor([299])}, classes=[str(i) for i in range(300)])
    both = Dataset({"x": torch.zeros(1), "y": torch.tensor([1], dtype=torch.uint8)}, classes=["z", "1"]).concat(many)
    assert both.data["y"].tolist() == [1, 300]  # "1" is the same in both
    assert both.data["y"].dtype == torch.int64


def test_classes_are_checked_where_they_are_given():
    with pytest.raises(ValueError, match=r"data\['y'\] must lie in \[0, 2\), as classes says, got 2"):
        Dataset({"y": [0, 2]}, classes=["a", "b"])
    with pytest.raises(ValueError, match=r"classes name the labels in data\['y'\], the data has \['x'\]"):
        Dataset({"x": [0, 2]}, classes=["a", "b"])
    with pytest.raises(ValueError, match="classes must name each class once, got 'ab'"):
        Dataset({"y": [0, 1]}, classes="ab")


def test_an_empty_and_a_skipped_class_keep_their_places(tmp_path):
    root = folder_of(tmp_path / "set", "a", "c", "d")
    (root / "b").mkdir()
    (root / "c" / "a.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="skipped 1 files"):
        ds = load(root, on_error="skip")
    assert ds.classes == ("a", "b", "c", "d")
    assert meanings(ds) == ["a", "d"]


def test_folders_named_by_numbers_are_names_in_order_of_their_value(tmp_path):
    ds = load(folder_of(tmp_path / "turned", "0", "90", "180", "270"))
    assert ds.classes == ("0", "90", "180", "270")
    assert meanings(ds) == ["0", "180", "270", "90"]  # in the order of the files
    both = load(folder_of(tmp_path / "both", "007", "7"))
    assert both.classes == ("007", "7")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 3], r"must be 0 … n - 1 to be classes, got 0, 1, 3: give classes, a number n"),
        ([0.5, 1.5, -2], r"must be names or whole numbers to be classes, .* has -2: give targets='numbers'"),
        ([0, True, 1], r"text or a number as its label, 'b/a\.png' has True"),
        (["a", None, "b"], r"text or a number as its label, 'b/a\.png' has None"),
    ],
)
def test_numbers_in_tables_are_not_guessed_at(tmp_path, labels, message):
    root = folder_of(tmp_path / "set", "a", "b", "c")
    (root / "labels.json").write_text(json.dumps(dict(zip(("a/a.png", "b/a.png", "c/a.png"), labels, strict=True))))
    with pytest.raises(ValueError, match=message):
        load(root, labels="labels.json")


def test_numbers_in_tables_as_targets_or_by_name(tmp_path):
    root = folder_of(tmp_path / "set", "a", "b", "c")
    (root / "ages.csv").write_text("file,age\na/a.png,0.5\nb/a.png,1.5\nc/a.png,-2\nd/gone.png,9\n")
    ds = load(root, labels="ages.csv", targets="numbers")
    assert ds.data["y"].tolist() == [0.5, 1.5, -2]
    assert ds.data["y"].dtype == torch.float32
    assert ds.classes is None
    by_name = load(root, labels="ages.csv", classes=["-2", "0.5", "1.5"])
    assert by_name.data["y"].tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match="classes needs labels that name classes"):
        load(root, labels="ages.csv", targets="numbers", classes=["a"])
    (root / "ages.csv").write_text("a/a.png,1\nb/a.png,old\nc/a.png,3\n")
    with pytest.raises(ValueError, match=r"targets='numbers' needs a finite number .* has 'old' for b/a\.png"):
        load(root, labels="ages.csv", targets="numbers")


def test_rows_of_a_table_without_a_file_keep_their_class(tmp_path):
    root = folder_of(tmp_path / "set", "a", "b")
    (root / "labels.csv").write_text("file,label\na/a.png,cat\nb/a.png,fox\nelsewhere/c.png,dog\n")
    ds = load(root, labels="labels.csv")
    assert ds.classes == ("cat", "dog", "fox")
    assert np.array_equal(ds.data["y"], [0, 2])
    (root / "labels.csv").write_text("a/a.png,cat\nb/a.png,fox\na/a.png,dog\n")
    with pytest.raises(ValueError, match=r"labels\.csv gives a/a\.png two labels, cat and dog"):
        load(root, labels="labels.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "l.csv",
            b"a/a.png,1,0\nb/a.png,0,1\n",
            r"l\.csv must hold rows of a file and its label: there are 3 columns for a/a\.png",
        ),
        ("l.csv", b"a/a.png,\nb/a.png,x\n", r"l\.csv must give each file a label, a/a\.png has none"),
        ("l.csv", b"a/a.png,caf\xe9\nb/a.png,x\n", r"l\.csv must hold rows .*: 'utf-8' codec"),
        ("l.csv", b"a/a.png," + b"x" * 200_000, r"l\.csv must hold rows .*: field larger than field limit"),
        ("l.csv", b"a/a.png,0\nb/a.png,nan\n", "labels must be names or whole numbers to be classes, .* has nan"),
        ("l.json", b'{"a/a.png": "x", "b/a.png": "y", "a/a.png": "y"}', r"gives a/a\.png two labels, x and y"),
        ("l.json", b"[" * 100_000, r"l\.json must hold \{file: label\} or .*recursion"),
        ("l.json", b"3", r"l\.json must hold \{file: label\} or .*: got 3"),
    ],
)
def test_a_damaged_or_ambiguous_table_is_refused_by_name(tmp_path, name, content, message):
    root = folder_of(tmp_path / "set", "a", "b")
    (root / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(root, labels=name)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("01", "classes must be a whole number or a list of names, got '01'"),
        (True, "a whole number or a list of names, got True"),
        ([0, 1], "classes must be names, got 0: give a number n"),
    ],
)
def test_classes_are_a_number_or_names(tmp_path, classes, message):
    root = folder_of(tmp_path / "set", "0", "1")
    with pytest.raises(TypeError, match=message):
        load(root, classes=classes)
    assert load(root, classes=np.int64(3)).classes == ("0", "1", "2")
