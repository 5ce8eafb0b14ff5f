"""Labelled rows in Parquet files: a column of lists, numbers or images, and a column of labels."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resque_ext.data.checks import as_float, as_tensor, check_features
from resque_ext.data.images import image_decoder
from resque_ext.data.sources.base import (
    Batch,
    Kind,
    Reading,
    SourceBase,
    check_kind,
    file_fingerprint,
)
from resque_ext.data.sources.items import batch_of
from resque_ext.data.sources.order import Plan, permutation
from resque_ext.data.transforms import Transforms
from resque_ext.errors import ArgumentError, needing
from resque_ext.storage.json_text import parse_json

_SAMPLE = 256  # rows that are read at once to find the first one's shape


class ParquetSource(SourceBase):
    """Rows of Parquet files, one row group in memory at a time.

    Rows of the wrong length, without a value or without a label are faults of their own. A seeded
    order shuffles the row groups, and the rows inside of each.

    Args:
        paths: a file, a folder (all its .parquet files, in the order of their names), a pattern
            such as ``data/train-*.parquet``, or a list of these.
        features: name of the column of lists of numbers, of any list type and nested to any depth;
            or, of kind "inputs", of images (bytes, or the structs that Hugging Face datasets
            write). Default "features", or "inputs" for that kind.
        labels: name of the column of integers or of names of classes.
        name: how reports call it; default the path.
        kind: "embeddings"; or "inputs", of which bytes and images become floats in [0, 1], and
            float64 becomes float32.
        transforms: of a batch of inputs, or of one image, in turn: functions, or texts as
            :func:`resque_ext.data.transforms.make_transform` takes.
        classes: names of the classes in order; default those that the file's metadata have, or
            for labels that are names all of them, sorted.

    Raises:
        FileNotFoundError, ValueError: one line: path, what was expected, what was found.
    """

    access = "blocks"

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        features: str | None = None,
        labels: str = "labels",
        name: str | None = None,
        kind: Kind = "embeddings",
        transforms: Sequence[Any] = (),
        classes: Sequence[str] | None = None,
    ) -> None:
        several = not isinstance(paths, (str, os.PathLike))
        given = [os.fspath(p) for p in paths] if several else [os.fspath(paths)]
        self.name, self.kind = name or " ".join(given), check_kind(kind)
        self._columns = features or ("features" if kind == "embeddings" else "inputs"), labels
        self._paths = [path for text in given for path in _expanded(text)]
        if not self._paths:
            raise ArgumentError("path", "at least one Parquet file", "an empty list")
        self._transforms = Transforms(transforms)
        groups: list[tuple[int, int]] = []  # file, row group
        rows: list[int] = []
        kinds: dict[Any, Path] = {}
        for i, path in enumerate(self._paths):
            with _open(path) as file:
                kinds.setdefault(self._check_schema(path, file.schema_arrow), path)
                metadata = file.metadata
                counts = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
            groups += [(i, g) for g in range(len(counts))]
            rows += counts
        if len(kinds) > 1:
            (first, path), (second, other) = list(kinds.items())[:2]
            raise ArgumentError(f"{other}: {self._columns[0]}", f"{first} as in {path}", second)
        self._groups = groups
        self._edges = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]).astype(np.int64)
        self.rows = int(self._edges[-1])
        if self.rows == 0:
            raise ArgumentError(self.name, "at least one row", "none")
        self.block_rows = max(rows)
        self._decode = image_decoder() if next(iter(kinds)) == "images" else None
        self._shape = () if self._decode else self._find_shape()
        self._names: NDArray[np.str_] | None = None
        self.sorted_names = False  # whether the order of the classes is that of their names
        self.classes = self._find_classes(classes)

    def fingerprint(self) -> dict[str, Any] | None:
        options = {"columns": list(self._columns)}
        # Only where they are said, so that stores and caches of earlier versions stay valid.
        options |= {"kind": self.kind} if self.kind != "embeddings" else {}
        options |= {} if self.classes is None else {"classes": list(self.classes)}
        return self._transforms.named(file_fingerprint("parquet", self._paths, options))

    def _check_schema(self, path: Path, schema: Any) -> Any:
        """What the features are: a type of numbers, or "images"."""
        _, pa = _library()
        for column in self._columns:
            count = schema.names.count(column)
            if count != 1:
                wrong = f"{column!r} {'missing' if count == 0 else 'more than once'}"
                raise ArgumentError(
                    path,
                    f"the columns {self._columns[0]!r} and {self._columns[1]!r}",
                    f"{', '.join(map(repr, schema.names[:8]))} ({wrong})",
                )
        x, y = (schema.field(column).type for column in self._columns)
        if not (pa.types.is_integer(_value_type(y)) or _is_text(_value_type(y))):
            raise ArgumentError(f"{path}: {self._columns[1]}", "integers or names of classes", y)
        if self.kind == "inputs" and _is_image(x):
            return "images"
        leaf, nested = _storage(x), False
        while _is_list(leaf):
            if pa.types.is_fixed_size_list(leaf) and leaf.list_size == 0:
                raise ArgumentError(f"{path}: {self._columns[0]}", "values", x)
            leaf, nested = _storage(leaf.value_type), True
        if not nested or not (pa.types.is_floating(leaf) or pa.types.is_integer(leaf)):
            wanted = "lists of numbers" if self.kind == "embeddings" else "lists of numbers, images"
            raise ArgumentError(f"{path}: {self._columns[0]}", wanted, x)
        return leaf

    def _find_shape(self) -> tuple[int, ...]:
        """The shape of the first row that has values, which all others are to have."""
        _, pa = _library()
        for path in self._paths:
            with _open(path) as file:
                for group in range(file.metadata.num_row_groups):
                    # A damaged row group is a fault of its rows, when they are read.
                    with suppress(pa.ArrowException, OSError):
                        for batch in file.iter_batches(
                            _SAMPLE, row_groups=[group], columns=[self._columns[0]]
                        ):
                            shape = _first_shape(batch.column(0))
                            if shape is not None:
                                return shape
        raise ArgumentError(f"{self.name}: {self._columns[0]}", "values", "nulls alone")

    def _find_classes(self, given: Sequence[str] | None) -> tuple[str, ...] | None:
        _, pa = _library()
        column, texts, names = self._columns[1], set(), given
        with _open(self._paths[0]) as file:
            schema = file.schema_arrow
        if not _is_text(_value_type(schema.field(column).type)):
            if names is None:
                names = _class_label(schema, column)
            return None if names is None else tuple(names)
        if names is None:
            for path in self._paths:
                with _open(path) as file, _readable(path):
                    found = file.read(columns=[column]).column(0)
                    texts |= set(pa.compute.unique(found).to_pylist())
            names, self.sorted_names = sorted(texts - {None}), True
        self._names = np.asarray(names, dtype=str)
        return tuple(map(str, names))

    def _check(self, reading: Reading) -> None:
        if reading.order is not None and reading.order.rows is not None:
            raise ArgumentError(
                "order",
                f"rows=None for {self.name}, whose blocks are its row groups",
                reading.order.rows,
            )

    def _pieces(self, reading: Reading) -> Iterator[Batch]:
        plan = Plan(self._edges, None if reading.order is None else reading.order.seed)
        group, held = -1, None
        with ExitStack() as stack:
            number, file = -1, None
            for spans in plan.spans(*reading.share(self.rows), reading.batch_size):
                for first, last in spans.tolist():
                    if first == last:  # a row group without rows, which may be behind the last one
                        continue
                    found = int(np.searchsorted(self._edges, first, side="right")) - 1
                    if found != group:
                        group, held = found, None  # the one before goes first
                        if self._groups[group][0] != number:
                            stack.close()
                            number = self._groups[group][0]
                            file = stack.enter_context(_open(self._paths[number]))
                        held = self._read_group(file, group, reading)
                    if held is not None:
                        edge = self._edges[group]
                        piece = held.take(first - edge, last - edge, reading)
                        if piece is not None:
                            yield piece

    def _read_group(self, file: Any, group: int, reading: Reading) -> _Held | None:
        """A row group, its rows in the order of the reading; None where it cannot be read."""
        _, pa = _library()
        (which, inner), rows = self._groups[group], int(np.diff(self._edges[group : group + 2])[0])
        path = self._paths[which]
        row = int(self._edges[group] - self._edges[self._first_group(which)])  # in its file
        try:
            table = file.read_row_group(inner, columns=list(self._columns))
            x, y = (table.column(column) for column in self._columns)
            if len(x) != rows or len(y) != rows:
                raise ValueError(f"expected {rows} rows, found {len(y)}")
            bad: dict[int, str] = {}
            labels = self._read_labels(y, bad)
            features = x.combine_chunks() if self._decode else self._read_features(x, bad)
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            reading.fault(path, f"row group {inner}", f"rows {row} to {row + rows - 1}: {error}")
            return None
        order = np.arange(rows)
        if reading.order is not None:
            order = permutation(rows, reading.order.seed + group + 1)
        return _Held(self, path, row, order, features, labels, bad)

    def _first_group(self, which: int) -> int:
        return next(g for g, (file, _) in enumerate(self._groups) if file == which)

    def _read_labels(self, column: Any, bad: dict[int, str]) -> NDArray[np.int64]:
        """Class indices, with what is wrong with a row added to `bad`."""
        _, pa = _library()
        array = column.combine_chunks()
        if pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        for row in np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)):
            bad[int(row)] = f"{self._columns[1]}: expected a label, found null"
        if self._names is None:
            filled = array.fill_null(0).to_numpy(zero_copy_only=False)
            return as_tensor(filled, self._columns[1]).long().numpy()
        texts = np.asarray(array.fill_null("").to_pylist(), dtype=str)
        turn = np.argsort(self._names)
        names = self._names[turn]
        places = np.searchsorted(names, texts).clip(max=len(names) - 1)
        for row in np.flatnonzero(names[places] != texts):
            bad.setdefault(
                int(row),
                f"{self._columns[1]}: expected one of {', '.join(names[:5])}"
                f"{', ...' if len(names) > 5 else ''}, found {str(texts[row])!r}",
            )
        return turn[places]

    def _read_features(self, column: Any, bad: dict[int, str]) -> Tensor:
        """[rows, *shape], zeros where a row is in `bad`."""
        array = column.combine_chunks()
        rows, good = len(array), np.arange(len(array))

        def drop(wrong: NDArray[np.bool_], message: Callable[[int], str]) -> NDArray[np.bool_]:
            """Leaves out the rows of wrong elements; which elements of `array` stay."""
            nonlocal good
            by_row = wrong.reshape(len(good), -1)
            for place in np.flatnonzero(by_row.any(1)):
                found = int(np.flatnonzero(by_row[place])[0]) + int(place) * by_row.shape[1]
                bad.setdefault(int(good[place]), f"{self._columns[0]}: {message(found)}")
            stays = ~by_row.any(1)
            good = good[stays]
            return np.repeat(stays, by_row.shape[1])

        def without_nulls(array: Any) -> Any:
            if not array.null_count:
                return array
            return array.filter(
                _mask(drop(_flags(array.is_null()), lambda _: "expected a value, found null"))
            )

        for length in self._shape:
            array = without_nulls(_stored(array))
            lengths = _lengths(array)
            wrong = lengths != length
            if wrong.any():
                expected = f"expected {length} values, found "
                kept = drop(wrong, lambda i, n=lengths, e=expected: f"{e}{n[i]}")
                array = array.filter(_mask(kept))
            array = array.flatten()
        values = without_nulls(_stored(array)).to_numpy(zero_copy_only=False)
        make = as_float if self.kind == "embeddings" else as_tensor
        found = make(values, self._columns[0]).view(len(good), *self._shape)
        if self.kind == "embeddings":
            check_features(found[:0], self._columns[0])
        elif found.dtype == torch.float64:
            found = found.float()
        if len(good) == rows:
            return found
        whole = found.new_zeros(rows, *self._shape)
        whole[torch.from_numpy(good)] = found
        return whole

    def _image(self, value: Any) -> Tensor:
        found = value.as_py()
        data = found.get("bytes") if isinstance(found, dict) else found
        if data is None:
            raise ArgumentError(self._columns[0], "the bytes of an image", "null")
        return self._transforms.one(self._decode(io.BytesIO(data)))  # type: ignore[misc]


class _Held:
    """A row group in memory, in the order of a reading."""

    def __init__(
        self,
        source: ParquetSource,
        path: Path,
        first_row: int,
        order: NDArray[np.int64],
        features: Any,
        labels: NDArray[np.int64],
        bad: dict[int, str],
    ) -> None:
        self.source, self.path, self.first_row, self.order = source, path, first_row, order
        self.features, self.labels, self.bad = features, labels, bad

    def take(self, begin: int, end: int, reading: Reading) -> Batch | None:
        """The rows at these places that can be read; the others are listed."""
        rows = self.order[begin:end]
        for row in rows.tolist() if self.bad else ():
            if row in self.bad:
                self._fault(row, self.bad[row], reading)
        if self.bad:
            rows = rows[[row not in self.bad for row in rows.tolist()]]
        if self.source._decode is not None:
            return batch_of([self._item(int(row), reading) for row in rows], self.source.name)
        if not len(rows):
            return None
        # Rows one behind the other are a view.
        plain = len(rows) == rows[-1] - rows[0] + 1 and bool((np.diff(rows) == 1).all())
        which: Any = slice(int(rows[0]), int(rows[-1]) + 1) if plain else torch.from_numpy(rows)
        x, y = self.features[which], torch.from_numpy(self.labels[rows])
        return (self.source._transforms.inputs(x) if self.source.kind == "inputs" else x), y

    def _item(self, row: int, reading: Reading) -> tuple[Tensor, int] | None:
        try:
            return self.source._image(self.features[row]), int(self.labels[row])
        except ValueError as error:
            self._fault(row, error, reading)
            return None

    def _fault(self, row: int, message: Any, reading: Reading) -> None:
        reading.fault(self.path, f"row {self.first_row + row}", message)


def _expanded(text: str) -> list[Path]:
    """The files of a path, a folder or a pattern, in the order of their names."""
    path = Path(text)
    if path.is_dir():
        inside = (p.relative_to(path) for p in path.rglob("*.parquet"))
        found = sorted(path / p for p in inside if not any(n[0] in "._" for n in p.parts))
        what = "a folder of .parquet files"
    elif not path.exists() and glob.has_magic(text):
        # Path.glob takes no absolute pattern.
        found = sorted(Path(p) for p in glob.glob(text, recursive=True))  # noqa: PTH207
        what = "a pattern of .parquet files"
    else:
        found, what = [path], "a Parquet file"
    for file in found:
        if not file.exists():
            raise FileNotFoundError(f"{file}: expected {what}, found none")
        if not file.is_file():
            raise ArgumentError(file, what, "no regular file")
    if not found:
        raise FileNotFoundError(f"{text}: expected {what}, found none")
    return found


def _is_list(kind: Any) -> bool:
    _, pa = _library()
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def _is_text(kind: Any) -> bool:
    _, pa = _library()
    view = getattr(pa.types, "is_string_view", lambda _: False)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or view(kind)


def _is_image(kind: Any) -> bool:
    _, pa = _library()
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _value_type(kind: Any) -> Any:
    _, pa = _library()
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _storage(kind: Any) -> Any:
    _, pa = _library()
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _stored(array: Any) -> Any:
    _, pa = _library()
    return array.storage if isinstance(array.type, pa.BaseExtensionType) else array


def _lengths(array: Any) -> NDArray[np.int64]:
    _, pa = _library()
    if pa.types.is_fixed_size_list(array.type):
        return np.full(len(array), array.type.list_size)
    return pa.compute.list_value_length(array).to_numpy(zero_copy_only=False)


def _first_shape(array: Any) -> tuple[int, ...] | None:
    """The shape of the first row that has no null or empty list on its way down."""
    shape, array = [], _stored(array).drop_null()
    array = array.filter(_mask(_lengths(array) > 0)).slice(0, 1)
    while len(array) and _is_list(array.type):
        shape.append(int(_lengths(array)[0]))
        array = _stored(array.flatten()).drop_null().slice(0, 1)
    return None if _is_list(array.type) or not shape else tuple(shape)


def _flags(array: Any) -> NDArray[np.bool_]:
    return array.to_numpy(zero_copy_only=False)


def _mask(flags: NDArray[np.bool_]) -> Any:
    _, pa = _library()
    return pa.array(flags)


def _class_label(schema: Any, column: str) -> list[str] | None:
    """Names of classes as Hugging Face datasets keep them in a file's metadata."""
    try:
        found = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        names = found["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return names if all(isinstance(name, str) for name in names) else None


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    parquet, _ = _library()
    with _readable(path):
        file = parquet.ParquetFile(path, page_checksum_verification=True)
    try:
        yield file
    finally:
        file.close()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    _, pa = _library()
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        first = " ".join(str(error).split())[:200]
        raise ArgumentError(path, "a whole Parquet file", first) from None


def _library() -> tuple[Any, Any]:
    with needing("data", "pyarrow", "pyarrow, which reads Parquet", "files"):
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    return pyarrow.parquet, pyarrow
