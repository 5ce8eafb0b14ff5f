"""Features in a Parquet file: a column of lists of one length, and a column of labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resque_ext._inputs import as_tensor, check_labels
from resque_ext.screening.sources.base import Batch, Reading, SourceBase, file_fingerprint
from resque_ext.screening.sources.order import Plan, permutation


class ParquetSource(SourceBase):
    """Embeddings in a Parquet file, one row group in memory at a time.

    A seeded order shuffles the row groups, and the rows inside of each.

    Args:
        path: the file.
        features: name of the column of fixed-size lists of float16, float32 or float64.
        labels: name of the column of integers.
        name: how reports call it; default the path.

    Raises:
        FileNotFoundError, ValueError: one line: path, what was expected, what was found.
    """

    kind = "embeddings"
    access = "blocks"

    def __init__(
        self,
        path: str | os.PathLike[str],
        features: str = "features",
        labels: str = "labels",
        name: str | None = None,
    ) -> None:
        self._path, self._columns = Path(path), (features, labels)
        self.name = name or str(path)
        if not self._path.exists():
            raise FileNotFoundError(f"{path}: expected a Parquet file, found none")
        if not self._path.is_file():
            raise ValueError(f"{path}: expected a Parquet file, found no regular file")
        with _open(self._path) as file:
            self._check_schema(file.schema_arrow)
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._edges = np.concatenate([[0], np.cumsum(groups, dtype=np.int64)]).astype(np.int64)
        self.rows = int(self._edges[-1])
        if self.rows == 0:
            raise ValueError(f"{path}: expected at least one row, found none")
        self.block_rows = max(groups)

    def _check_schema(self, schema: Any) -> None:
        _, pa = _library()
        for column in self._columns:
            count = schema.names.count(column)
            if count != 1:
                raise ValueError(
                    f"{self._path}: expected the columns {self._columns[0]!r} and "
                    f"{self._columns[1]!r}, found {', '.join(map(repr, schema.names[:8]))} "
                    f"({column!r} {'missing' if count == 0 else 'more than once'})"
                )
        x, y = (schema.field(column).type for column in self._columns)
        if not pa.types.is_fixed_size_list(x) or not pa.types.is_floating(x.value_type):
            raise ValueError(
                f"{self._path}: {self._columns[0]}: expected fixed-size lists of float16, float32 "
                f"or float64, found {x}"
            )
        if x.list_size == 0:
            raise ValueError(f"{self._path}: {self._columns[0]}: expected values, found {x}")
        if not pa.types.is_integer(y):
            raise ValueError(f"{self._path}: {self._columns[1]}: expected integers, found {y}")

    def fingerprint(self) -> dict[str, Any] | None:
        return file_fingerprint("parquet", [self._path], {"columns": list(self._columns)})

    def _check(self, reading: Reading) -> None:
        if reading.order is not None and reading.order.rows is not None:
            raise ValueError(
                f"order: expected rows=None for {self.name}, whose blocks are its row groups, "
                f"found {reading.order.rows}"
            )

    def _pieces(self, reading: Reading) -> Iterator[Batch]:
        plan = Plan(self._edges, None if reading.order is None else reading.order.seed)
        group, held = -1, None
        with _open(self._path) as file:
            for spans in plan.spans(*reading.share(self.rows), reading.batch_size):
                for first, last in spans.tolist():
                    if first == last:  # a row group without rows, which may be behind the last one
                        continue
                    found = int(np.searchsorted(self._edges, first, side="right")) - 1
                    if found != group:
                        group, held = found, None  # the one before goes first
                        held = self._read_group(file, group, reading)
                    if held is None:
                        continue
                    x, y = held
                    begin, end = first - self._edges[group], last - self._edges[group]
                    yield x[begin:end], y[begin:end]

    def _read_group(self, file: Any, group: int, reading: Reading) -> tuple[Tensor, Tensor] | None:
        """A row group, its rows in the order of the reading; None where it cannot be read."""
        _, pa = _library()
        try:
            table = file.read_row_group(group, columns=list(self._columns))
            x, y = (table.column(column).combine_chunks() for column in self._columns)
            rows = int(self._edges[group + 1] - self._edges[group])
            features = _plain(x.flatten() if x.null_count == 0 else x, x.null_count)
            labels = check_labels(_plain(y, y.null_count))
            features = features.view(rows, -1)
            if len(labels) != rows:
                raise ValueError(f"expected {rows} rows, found {len(labels)}")
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            first, last = self._edges[group : group + 2]
            where = f"row group {group}"
            reading.fault(self._path, where, f"rows {first} to {last - 1}: {error}")
            return None
        if reading.order is not None:
            turn = torch.from_numpy(permutation(rows, reading.order.seed + group + 1))
            features, labels = features[turn], labels[turn]
        return features, labels


def _plain(array: Any, nulls: int) -> Tensor:
    if nulls or array.null_count:
        raise ValueError(f"expected a value in every row, found {nulls or array.null_count} nulls")
    return as_tensor(array.to_numpy(zero_copy_only=False), "column")


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    parquet, pa = _library()
    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        first = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: expected a whole Parquet file, found {first}") from None
    try:
        yield file
    finally:
        file.close()


def _library() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyarrow":
            raise
        raise ValueError(
            "data: expected pyarrow, which reads Parquet, found none: "
            "pip install 'resque-ext[files]'"
        ) from None
    return pyarrow.parquet, pyarrow
