"""Tables of other libraries: taken by name, shared where they can be, refused by name where a guess would be needed."""

from collections import namedtuple
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from ai.data import Dataset


def test_an_arrow_table_becomes_columns_that_share_its_memory():
    table = pa.table({
        "a": pa.array([1, 2, 3], pa.int32()),
        "flag": [True, False, True],
        "name": ["u", "v", "w"],
        "pair": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6.0)), 2),
        "sort": pa.array(["x", "y", "x"]).dictionary_encode(),
    })  # fmt: skip
    ds = Dataset(table)
    assert {name: ds.data[name].dtype for name in ("a", "flag", "pair")} == {
        "a": torch.int32, "flag": torch.bool, "pair": torch.float64,
    }  # fmt: skip
    assert ds.data["a"].data_ptr() == table.column("a").chunk(0).buffers()[1].address
    assert ds.data["pair"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert (ds.data["name"], ds.data["sort"]) == (["u", "v", "w"], ["x", "y", "x"])
    assert ds[1]["pair"].tolist() == [2, 3]


def test_chunks_batches_and_lists_of_arrow():
    chunked = pa.chunked_array([[1, 2], [3]])
    assert Dataset({"x": chunked}).data["x"].tolist() == [1, 2, 3]
    assert Dataset(pa.record_batch({"x": [4, 5]})).data["x"].tolist() == [4, 5]
    lists = Dataset({"x": pa.array([[1], [2, 3]])}).data["x"]
    assert [item.tolist() for item in lists] == [[1], [2, 3]]
    sliced = pa.table({"x": [[9], [1, 2], [3, 4]]}).slice(1)
    assert [item.tolist() for item in Dataset(sliced).data["x"]] == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (pa.table({"x": [1, None, 3]}), ValueError, r"data\['x'\] must have a value for each sample, 1 are missing"),
        (pa.table({"t": [datetime(2020, 1, 1)]}), TypeError, r"data\['t'\] .* got the Arrow type timestamp"),
        (pa.table([[1], [2]], ["x", "x"]), ValueError, r"names of their own, got \['x'\] more than once"),
        (pd.DataFrame({"x": pd.array([1, None], "Int64")}), ValueError, r"data\['x'\] .* 1 are missing"),
        (pd.DataFrame({"x": ["a", None]}), ValueError, r"data\['x'\] .* 1 are missing"),
        (pd.DataFrame({"t": pd.to_datetime(["2020-01-01"])}), TypeError, r"data\['t'\] .* say as which number a time"),
        (
            {"x": pd.DataFrame({"a": [1], "b": ["u"]})},
            TypeError,
            r"data\['x'\] must have one dtype .* give each column",
        ),
        ({"x": [1, None, 2]}, ValueError, r"data\['x'\] must hold numbers only or none, got None among .* at place 1"),
        ({"x": ["a", 2]}, ValueError, r"data\['x'\] must hold numbers only or none, got 'a' .* at place 0"),
        (np.array([1, None], object), ValueError, "data must hold numbers only or none, got None"),
        ({"x": np.ma.masked_equal([1, -999], -999)}, ValueError, r"data\['x'\] .* 1 are masked: fill or drop them"),
        ({"t": np.array(["2020"], "M8[D]")}, TypeError, r"data\['t'\] must hold numbers, got datetime64\[D\]"),
        ({"r": np.zeros(2, [("a", "i4")])}, TypeError, r"data\['r'\] must hold numbers, got records"),
    ],
)
def test_what_needs_a_guess_is_refused_by_name(data, error, message):
    with pytest.raises(error, match=message):
        Dataset(data)


def test_a_data_frame_keeps_the_names_of_its_columns():
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, np.nan], "name": ["u", "v"], "n": pd.array([3, 4], "Int64")}, [7, 8])
    ds = Dataset(frame)
    assert list(ds.data) == ["a", "b", "name", "n"]
    assert ds.data["a"].tolist() == [1, 2]
    assert ds.data["b"][0] == 0.5
    assert ds.data["b"][1].isnan()
    assert ds.data["name"] == ["u", "v"]
    assert ds.data["n"].dtype == torch.int64
    assert list(Dataset(pd.DataFrame({"a": [1, 2], "b": [3, 4]})).data) == ["a", "b"]  # also where all are numbers
    assert Dataset({"x": frame[["a", "a"]], "y": frame["a"]}).data["x"].tolist() == [[1, 1], [2, 2]]
    assert Dataset({"x": pd.Series(["u", "v"], dtype="category")}).data["x"] == ["u", "v"]
    arrow = frame[["a"]].astype("int32[pyarrow]")
    assert Dataset(arrow).data["a"].dtype == torch.int32


def test_a_polars_frame_keeps_the_names_of_its_columns():
    frame = pl.DataFrame({"a": [1, 2], "b": [True, False], "name": ["u", "v"], "l": [[1], [2, 3]]})
    ds = Dataset(frame)
    assert ds.data["a"].tolist() == [1, 2]
    assert ds.data["b"].dtype == torch.bool
    assert ds.data["name"] == ["u", "v"]
    assert [item.tolist() for item in ds.data["l"]] == [[1], [2, 3]]
    with pytest.raises(ValueError, match=r"data\['x'\] .* 1 are missing"):
        Dataset(pl.DataFrame({"x": [1, None]}))
    with pytest.raises(TypeError, match=r"data\['t'\] .* got the polars type Date"):
        Dataset(pl.DataFrame({"t": [datetime(2020, 1, 1)]}))


Pair = namedtuple("Pair", "x y")


def test_named_tuples_keep_their_names():
    assert sorted(Dataset(Pair(np.arange(3), [0, 1, 2])).data) == ["x", "y"]
    ds = Dataset([1, 2, 3], lambda n: Pair(n, {"square": n * n}))
    batch = next(iter(ds.loader(3, n_workers=0)))
    assert type(batch) is Pair
    assert batch.y["square"].tolist() == [1, 4, 9]
    assert ds[1].x == 2
    records = np.array([(1, 0.5), (2, 1.5)], [("n", "i8"), ("v", "f4")])
    assert Dataset(records).data["v"].tolist() == [0.5, 1.5]


def test_whole_masked_arrays_and_numpy_numbers_are_numbers():
    assert Dataset(np.ma.array([1, 2])).data.tolist() == [1, 2]
    assert Dataset([np.int64(1), np.int64(2)]).data.dtype == torch.int64
    parts = Dataset(np.arange(10)).split(np.int64(7), np.int64(3))
    assert [len(part) for part in parts] == [7, 3]
    with pytest.raises(ValueError, match=r"ratios are arguments of their own: split\(0.5, 0.5\)"):
        Dataset(np.arange(10)).split([0.5, 0.5])


def test_a_preprocess_that_sometimes_returns_none_is_refused():
    loader = Dataset(["a", "b", "c"], lambda name: None if name == "b" else 1).loader(3, n_workers=0)
    with pytest.raises(ValueError, match=r"must all be numbers or none, got 1 for the first and None for sample 1"):
        next(iter(loader))


def test_repr_tells_length_columns_and_classes():
    ds = Dataset({"x": torch.zeros(3, 2, 4), "y": [0, 1, 0], "f": ["a", "b", "c"]}, classes=["cat", "dog"])
    assert repr(ds) == ("Dataset(3 samples, x: float32[2, 4], y: int64[], f: list of str, 2 classes: cat, dog)")


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([[1, None], [2]], "List(Int64)", r"data\['x'\]\[i\] must have a value for each sample, 1 are missing"),
        ([[1, None], [2, 3]], "Array(Int64, 2)", r"1 are missing"),
        ([[date(2020, 1, 1)]], "List(Date)", r"got the Arrow type date32"),
        ([[{"a": 1}]], "List(Struct({'a': Int64}))", r"got the Arrow type struct"),
        ([Decimal("1.5")], "Decimal", r"got the polars type Decimal"),
        ([1], "Int128", r"got the polars type Int128"),
    ],
)
def test_what_no_tensor_holds_is_refused_within_lists_of_polars_too(values, dtype, message):
    series = pl.Series("x", values, dtype=eval(dtype, vars(pl)))
    with pytest.raises((TypeError, ValueError), match=message):
        Dataset(series.to_frame())


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (pd.to_timedelta([1, 2], unit="s"), "timedelta64"),
        (pd.period_range("2020", periods=2, freq="D"), "period"),
        (pd.interval_range(0, 2), "interval"),
        ([date(2020, 1, 1)] * 2, "date"),
        (["a", datetime(2020, 1, 1)], "datetime"),
        ([Decimal("1.5")] * 2, "Decimal"),
    ],
)
def test_times_and_other_records_of_pandas_are_refused(column, what):
    with pytest.raises(TypeError, match=rf"data\['x'\] must hold numbers or text, got {what}"):
        Dataset(pd.DataFrame({"x": column}))


def test_sparse_and_categorical_columns_of_pandas_are_their_values():
    frame = pd.DataFrame({"s": pd.arrays.SparseArray([0.0, 0.0, 2.5]), "c": pd.Categorical([3, 7, 3])})
    ds = Dataset(frame)
    assert ds.data["s"].tolist() == [0, 0, 2.5]
    assert ds.data["c"].tolist() == [3, 7, 3]
