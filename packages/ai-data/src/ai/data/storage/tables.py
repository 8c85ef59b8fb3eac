"""Tables of other libraries as columns by name: Arrow, pandas, polars and HuggingFace, none of which is imported here.

Whatever a column cannot carry on without a guess (missing values, times, nested records) is refused by its name.
"""

import datetime
import decimal
from typing import Any

import numpy as np


def table_columns(data: Any) -> dict[str, Any] | None:
    """Returns the columns of a table by name, or None where `data` is none.

    Args:
        data: a table or record batch of pyarrow, a data frame of pandas or polars, a HuggingFace dataset, a structured
            array, or a named tuple of columns.
    """
    if hasattr(data, "column_names") and hasattr(data, "features"):
        return {name: _from_huggingface(data, name) for name in data.column_names}
    if (kind := _kind(data)) in ("pyarrow.Table", "pyarrow.RecordBatch"):
        columns = dict(zip(data.schema.names, data.columns, strict=True))
        _refuse_twins(data.schema.names)
    elif kind == "pandas.DataFrame":
        _refuse_twins(list(data.columns))
        columns = {name: data[name] for name in data.columns}
    elif kind == "polars.DataFrame":
        columns = {name: data[name] for name in data.columns}
    elif isinstance(data, np.ndarray) and data.dtype.names:
        return {name: data[name] for name in data.dtype.names}
    elif isinstance(data, tuple) and hasattr(data, "_asdict"):
        return dict(data._asdict())
    else:
        return None
    return {name: table_column(column, f"data[{name!r}]") for name, column in columns.items()}


def table_column(column: Any, name: str) -> Any:
    """Returns a column of another library as an array or a list; anything else as it is.

    Raises:
        ValueError: values are missing.
        TypeError: values of a type that no tensor or list of texts holds.
    """
    kind = _kind(column)
    if kind.startswith("pyarrow.") and hasattr(column, "null_count"):
        return _from_arrow(column, name)
    if kind == "pandas.DataFrame":  # as a column, it is a matrix
        dtypes = [str(dtype) for dtype in column.dtypes]
        if len(set(dtypes)) > 1:
            raise TypeError(
                f"{name} must have one dtype in all of its columns, got {dtypes}: give each column its name"
            )
        return column.to_numpy()
    if kind in ("pandas.Series", "pandas.Index"):
        return _from_pandas(column, name)
    if kind == "polars.Series":
        return _from_polars(column, name)
    if hasattr(column, "iloc"):  # as of pandas, whose [i] looks for the label i
        return column.to_numpy()
    return column


def _kind(data: Any) -> str:
    """Returns `library.Class` of the nearest public class."""
    for cls in type(data).__mro__:
        library = cls.__module__.partition(".")[0]
        if library in ("pyarrow", "pandas", "polars"):
            return f"{library}.{cls.__name__}"
    return ""


def _from_arrow(column: Any, name: str) -> Any:
    import pyarrow as pa  # type: ignore[import-untyped]

    array = column
    if isinstance(column, pa.ChunkedArray):  # one chunk is shared, several are joined
        array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = array.chunk(0)
    kind, types = array.type, pa.types
    _refuse_missing(array.null_count, name)
    if isinstance(kind, pa.FixedShapeTensorType):
        return array.to_numpy_ndarray()
    if types.is_integer(kind) or types.is_floating(kind):
        return array.to_numpy()
    if types.is_boolean(kind):
        return array.to_numpy(zero_copy_only=False)
    if types.is_fixed_size_list(kind):
        inner = np.asarray(_from_arrow(array.flatten(), f"{name}[i]"))
        return inner.reshape(len(array), kind.list_size, *inner.shape[1:])
    if types.is_list(kind) or types.is_large_list(kind):
        inner = _from_arrow(array.flatten(), f"{name}[i]")
        ends = np.cumsum(array.value_lengths().to_numpy()).tolist()
        return [inner[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    if types.is_dictionary(kind):
        return _from_arrow(array.cast(kind.value_type), name)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        return array.to_pylist()
    raise TypeError(f"{name} must hold numbers, text or lists of one length, got the Arrow type {kind}: cast it first")


def _from_pandas(column: Any, name: str) -> Any:
    dtype = column.dtype
    if type(dtype).__name__ == "ArrowDtype":
        import pyarrow as pa

        return _from_arrow(pa.array(column), name)
    if isinstance(dtype, np.dtype) and dtype.kind in "biufc":  # NaN is a number of these
        return column.to_numpy()
    _refuse_missing(int(column.isna().sum()), name)
    if hasattr(dtype, "numpy_dtype"):  # Int64, boolean, …
        return column.to_numpy(dtype.numpy_dtype)
    if (sort := type(dtype).__name__) == "SparseDtype":
        return column.to_numpy(dtype.subtype)
    values = column.tolist()
    if sort in ("CategoricalDtype", "StringDtype") or (isinstance(dtype, np.dtype) and dtype.kind == "O"):
        times = {datetime.date, datetime.datetime, datetime.time, datetime.timedelta, decimal.Decimal}
        odd = next((type(value) for value in values if times & set(type(value).__mro__)), None)
        if odd is None:
            return values
        dtype = odd.__name__
    raise TypeError(f"{name} must hold numbers or text, got {dtype}: say as which number a time or record counts")


def _from_polars(column: Any, name: str) -> Any:
    _refuse_missing(int(column.null_count()), name)
    dtype, kind = column.dtype, str(column.dtype).partition("(")[0]
    if kind in ("List", "Array"):
        return _from_arrow(column.to_arrow(), name)
    if dtype.is_float() or (dtype.is_integer() and not kind.endswith("128")) or kind == "Boolean":
        return column.to_numpy()
    if kind in ("String", "Binary", "Categorical", "Enum"):
        return column.to_list()
    raise TypeError(f"{name} must hold numbers, text or lists, got the polars type {dtype}: cast it first")


def _from_huggingface(data: Any, name: str) -> Any:
    """Returns one column of a HuggingFace dataset, as an array where its feature is numeric and of one shape."""
    values = data.with_format("numpy")[name]
    if np.asarray(values[:1]).dtype.kind not in "biuf":
        return data[name]
    _refuse_missing(data.with_format("arrow")[:][name].null_count, f"data[{name!r}]")
    try:
        return np.asarray(values[:])
    except ValueError:  # pictures of several sizes
        return values


def _refuse_missing(n_missing: int, name: str) -> None:
    if n_missing:
        raise ValueError(f"{name} must have a value for each sample, {n_missing} are missing: fill or drop them")


def _refuse_twins(names: list[Any]) -> None:
    if twins := sorted({str(name) for name in names if names.count(name) > 1}):
        raise ValueError(f"the columns of data must have names of their own, got {twins} more than once")
