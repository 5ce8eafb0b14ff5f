"""Sources that read one item after another: folders of images, datasets with `__getitem__`."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resque_ext.data.checks import as_tensor, check_features, describe
from resque_ext.data.images import image_decoder, list_images, stack_images
from resque_ext.data.sources.base import Batch, Kind, Reading, check_kind, stamp
from resque_ext.data.sources.order import Spans, rows_of
from resque_ext.data.sources.rows import RowsSource, Take
from resque_ext.data.transforms import Transforms
from resque_ext.errors import ArgumentError, ArgumentTypeError


class ItemSource(RowsSource):
    """Rows that are read one at a time, each as likely to fail as the next."""

    @abstractmethod
    def _item(self, row: int, reading: Reading) -> tuple[Tensor, int] | None:
        """One row and its label; None where it could not be read, which is then listed."""

    def _reader(self, reading: Reading) -> AbstractContextManager[Take]:
        def take(spans: Spans) -> Batch | None:
            return batch_of([self._item(int(row), reading) for row in rows_of(spans)], self.name)

        return nullcontext(take)


def batch_of(items: Sequence[tuple[Tensor, int] | None], where: Any) -> Batch | None:
    """The items that were read as a batch; None if there is none."""
    read = [item for item in items if item is not None]
    if not read:
        return None
    dtypes = {str(x.dtype) for x, _ in read}
    if len(dtypes) > 1:
        raise ArgumentError(where, "rows of one dtype", ", ".join(sorted(dtypes)))
    return stack_images([x for x, _ in read], where), torch.tensor([y for _, y in read])


class ImageFolderSource(ItemSource):
    """A folder with one subfolder of images a class, in the order of their names.

    Args:
        path: the folder.
        name: how reports call it; default the path.
        transforms: of one image [1, 3, H, W], which may differ in size, in turn: functions, or
            texts as :func:`resque_ext.data.transforms.make_transform` takes.
        classes: names that the subfolders may have, in order.

    Raises:
        FileNotFoundError, ValueError: one line: path, what was expected, what was found.
    """

    kind = "inputs"

    def __init__(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        transforms: Sequence[Any] = (),
        classes: Sequence[str] | None = None,
    ) -> None:
        self._path, self.name = Path(path), name or str(path)
        if not self._path.exists():
            raise FileNotFoundError(f"{path}: expected a folder of images, found none")
        if not self._path.is_dir():
            raise ArgumentError(path, "a folder of images", "a file")
        self._decode, self._transforms = image_decoder(), Transforms(transforms)
        self.classes, self._files = list_images(self._path, classes)
        self.rows = len(self._files)

    def fingerprint(self) -> dict[str, Any] | None:
        digest = hashlib.sha256()
        for file, label in self._files:
            digest.update(repr((*stamp(file), label)).encode())
        found = {"format": "folder", "files": [str(self._path.absolute())]}
        return self._transforms.named(found | {"digest": digest.hexdigest()})

    def _item(self, row: int, reading: Reading) -> tuple[Tensor, int] | None:
        file, label = self._files[row]
        try:
            image = self._decode(file)
        except ValueError as error:
            reading.fault(file, None, error)
            return None
        return self._transforms.one(image), label


class DatasetSource(ItemSource):
    """A dataset with `__len__` and `__getitem__`: torchvision's, or one of Hugging Face `datasets`.

    Args:
        dataset: items are pairs (inputs, label), or mappings, of which `columns` names two.
        name: how reports call it.
        kind: "inputs": PIL images (floats [3, H, W] in [0, 1] are made of them), tensors or arrays,
            bytes becoming floats in [0, 1]. "embeddings": vectors of floats.
        columns: (inputs, label); None for pairs.
        transforms: of one item [1, ...], in turn: functions, or texts as
            :func:`resque_ext.data.transforms.make_transform` takes.
        fingerprint: what tells these data from others. Default: that which Hugging Face datasets
            keep of themselves; None for others.

    An exception of the dataset's own passes unchanged, unless it is to be skipped.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        dataset: Any,
        name: str = "dataset",
        kind: Kind = "inputs",
        columns: Sequence[str] | None = None,
        transforms: Sequence[Any] = (),
        fingerprint: dict[str, Any] | None = None,
    ) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise ArgumentTypeError(
                name, "a dataset with __len__ and __getitem__", describe(dataset)
            )
        self._dataset, self.name, self.kind = dataset, name, check_kind(kind)
        self.rows = len(dataset)
        if self.rows == 0:
            raise ArgumentError(name, "at least one row", "none")
        self._columns = self._check_columns(columns)
        self._transforms = Transforms(transforms)
        self._decode: Callable[[Any], Tensor] | None = None
        self._fingerprint = fingerprint or self._own_fingerprint()
        self.sorted_names = False  # whether the order of the classes is that of their names
        self._numbers: dict[Any, int] = {}  # of names of classes, where labels are such
        self.classes = self._names()

    def _check_columns(self, columns: Sequence[str] | None) -> tuple[str, str] | None:
        present = getattr(self._dataset, "column_names", None)
        listed = ", ".join(map(repr, (present or [])[:8]))
        if columns is None:
            if present is not None:
                raise ArgumentError(
                    f"{self.name}: columns", f"the names of two of {listed}", "None"
                )
            return None
        if isinstance(columns, str) or len(columns) != 2:
            raise ArgumentError(f"{self.name}: columns", "two names", f"{columns!r}")
        for column in columns:
            if present is not None and column not in present:
                raise ArgumentError(f"{self.name}: columns", f"two of {listed}", f"{column!r}")
        return columns[0], columns[1]

    def _own_fingerprint(self) -> dict[str, Any] | None:
        # Hugging Face's hash of the data and of every step that made them.
        found = getattr(self._dataset, "_fingerprint", None)
        return {"format": "dataset", "hash": found} if isinstance(found, str) else None

    def _names(self) -> tuple[str, ...] | None:
        """Names of the classes: the dataset's own, or those of a column of text, sorted."""
        found = getattr(self._dataset, "classes", None)
        features = getattr(self._dataset, "features", None)
        if self._columns is not None and isinstance(features, Mapping):
            column = features.get(self._columns[1])
            found = getattr(column, "names", None)
            if getattr(column, "dtype", None) in ("string", "large_string"):
                texts = self._dataset.unique(self._columns[1])
                found, self.sorted_names = sorted(text for text in texts if text is not None), True
                self._numbers = {name: i for i, name in enumerate(found)}
        return tuple(map(str, found)) if isinstance(found, (list, tuple)) else None

    def fingerprint(self) -> dict[str, Any] | None:
        if self._fingerprint is None:
            return None
        options = {"kind": self.kind, "columns": self._columns and list(self._columns)}
        return self._transforms.named(self._fingerprint | options)

    def _item(self, row: int, reading: Reading) -> tuple[Tensor, int] | None:
        try:
            item = self._dataset[row]
        except Exception as error:
            if reading.faults is None:
                raise
            reading.fault(self.name, f"row {row}", f"{type(error).__name__}: {error}")
            return None
        x, y = self._pair(item, row)
        try:
            return self._input(x, row), self._label(y)
        except (TypeError, ValueError) as error:
            reading.fault(self.name, f"row {row}", error)
            return None

    def _pair(self, item: Any, row: int) -> tuple[Any, Any]:
        if self._columns is not None:
            if isinstance(item, Mapping) and all(c in item for c in self._columns):
                return item[self._columns[0]], item[self._columns[1]]
            found = sorted(item) if isinstance(item, Mapping) else describe(item)
            raise ArgumentError(
                f"{self.name}: row {row}", f"the columns {list(self._columns)}", found
            )
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            found = f"dict of {sorted(item)}" if isinstance(item, Mapping) else describe(item)
            raise ArgumentTypeError(
                f"{self.name}: row {row}",
                "a pair (inputs, label)",
                found,
                fix="columns= names two of a mapping",
            )
        return item[0], item[1]

    def _input(self, x: Any, row: int) -> Tensor:
        if hasattr(x, "convert") and hasattr(x, "getbands"):  # PIL's, which need not be there
            self._decode = self._decode or image_decoder()
            x = self._decode(x)
        elif isinstance(x, (list, tuple)):
            x = np.asarray(x)
            x = x.astype(np.float32) if x.dtype == np.float64 else x
        x = as_tensor(x, "inputs" if self.kind == "inputs" else "features")
        if x.dim() == 0:
            raise ValueError(f"expected at least one axis, found {describe(x)}")
        if self.kind == "embeddings":
            return check_features(x.unsqueeze(0))[0]
        return self._transforms.one(x)

    def _label(self, y: Any) -> int:
        return self._numbers[y] if self._numbers and isinstance(y, str) else _label(y)


def _label(y: Any) -> int:
    if isinstance(y, (Tensor, np.ndarray)) and y.ndim == 0:
        y = y.item()
    if isinstance(y, (bool, np.bool_)) or not isinstance(y, (int, np.integer)):
        raise TypeError(f"expected an integer label, found {y!r}"[:200])
    return int(y)
