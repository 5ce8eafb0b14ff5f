"""A source from what a configuration file says of it, or from what a caller has in hand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from resque_ext.data.callables import current_folder_first, find_callable, returning
from resque_ext.data.checks import describe, is_array_like
from resque_ext.data.sources.base import KINDS, Source
from resque_ext.data.sources.items import DatasetSource, ImageFolderSource
from resque_ext.data.sources.iterables import BatchSource
from resque_ext.data.sources.npy import NpySource
from resque_ext.data.sources.parquet import ParquetSource
from resque_ext.data.sources.rows import ArraySource
from resque_ext.data.sources.tar import TarSource
from resque_ext.data.sources.tensors import SafetensorsSource, open_npz
from resque_ext.errors import ArgumentError, ArgumentTypeError, InputError

_SUFFIXES = {
    ".npy": "npy",
    ".npz": "npz",
    ".safetensors": "safetensors",
    ".parquet": "parquet",
    ".tar": "tar",
}
_TEXT, _TEXTS, _COUNT = "a text", "a list of texts", "a number of rows"
_PATHS = "a text or a list"
_COMMON = {"path": _TEXT, "format": _TEXT, "name": _TEXT}
_INPUTS = {"kind": _TEXT, "transforms": _TEXTS}
_NAMES = {"features": _TEXT, "labels": _TEXT}
# What each format takes, and of which form.
_KEYS: dict[str, dict[str, str]] = {
    "npy": _COMMON | _INPUTS | {"labels": _TEXT},
    "npz": _COMMON | _INPUTS | _NAMES,
    "safetensors": _COMMON | _INPUTS | _NAMES,
    "parquet": _COMMON | _INPUTS | _NAMES | {"path": _PATHS, "classes": _TEXTS},
    "tar": _COMMON | _INPUTS | {"path": _PATHS, "label_key": _TEXT, "rows": _COUNT},
    "folder": _COMMON | {"transforms": _TEXTS, "classes": _TEXTS},
    "dataset": _INPUTS | {"dataset": _TEXT, "format": _TEXT, "name": _TEXT, "columns": _TEXTS},
}
_CLASSES: dict[str, Callable[..., Source]] = {
    "npy": NpySource,
    "npz": open_npz,
    "safetensors": SafetensorsSource,
    "parquet": ParquetSource,
    "tar": TarSource,
    "folder": ImageFolderSource,
}


def open_source(
    spec: str | os.PathLike[str] | Mapping[str, Any], folder: str | os.PathLike[str] = "."
) -> Source:
    """The source that a specification names.

    Args:
        spec: a path, or a mapping: `path` (a file, a folder, for tar shards and Parquet also a list
            or a pattern) or `dataset` ("module:callable", called without arguments, that returns a
            dataset, an iterable of batches or a source); `format` ("npy", "npz", "safetensors",
            "parquet", "tar", "folder", "dataset"), by default what the name's ending says;
            `name`; `kind` ("inputs" or "embeddings"); `transforms`, a list of texts; and what the
            class of the format takes.
        folder: where relative paths begin.

    Raises:
        FileNotFoundError, TypeError, ValueError: one line: what was expected, what was found.
    """
    if isinstance(spec, (str, os.PathLike)):
        spec = {"path": os.fspath(spec)}
    if not isinstance(spec, Mapping):
        raise ArgumentTypeError("source", "a path or a mapping", describe(spec))
    form = _format(spec, Path(folder))
    known = _KEYS[form]
    for key, value in spec.items():
        if key not in known:
            raise ArgumentError(
                "source", f"the keys {', '.join(known)} of format {form!r}", f"{key!r}"
            )
        if not _fits(value, known[key]):
            raise ArgumentError(f"source: {key}", known[key], f"{value!r}")
    if "kind" in spec and spec["kind"] not in KINDS:
        raise ArgumentError("source: kind", f"one of {KINDS}", f"{spec['kind']!r}")
    options = {k: v for k, v in spec.items() if k not in ("path", "format", "dataset")}
    if form == "dataset":
        return _open_dataset(spec["dataset"], options)
    path = spec["path"]
    options.setdefault("name", path if isinstance(path, str) else " ".join(path))
    paths = [str(Path(folder) / p) for p in ([path] if isinstance(path, str) else path)]
    if form == "npy" and "labels" in options:
        options["labels"] = Path(folder) / options["labels"]
    several = form in ("tar", "parquet")
    return _CLASSES[form](paths if several else paths[0], **options)


def _format(spec: Mapping[str, Any], folder: Path) -> str:
    given = spec.get("format")
    if given is not None and given not in _KEYS:
        raise ArgumentError("source: format", f"one of {', '.join(_KEYS)}", f"{given!r}")
    wanted = "dataset" if given == "dataset" or "dataset" in spec else "path"
    if wanted not in spec or (given not in (None, "dataset") and wanted == "dataset"):
        raise ArgumentError(
            "source",
            f"the key {'path' if given != 'dataset' else 'dataset'}",
            ", ".join(map(str, spec)) or "no key at all",
        )
    if given is not None or wanted == "dataset":
        return given or "dataset"
    path = spec["path"]
    if isinstance(path, (list, tuple)):
        return "parquet" if str(path[:1]).lower().endswith(".parquet']") else "tar"
    if not isinstance(path, str):
        raise ArgumentError("source: path", "a text", f"{path!r}")
    where = folder / path
    if where.is_dir():
        if (where / "features.npy").exists() or (where / "inputs.npy").exists():
            return "npy"
        return "parquet" if next(where.rglob("*.parquet"), None) is not None else "folder"
    form = _SUFFIXES.get(where.suffix.lower())
    if form is None:
        if not where.exists():
            raise FileNotFoundError(f"{where}: expected a file or a folder, found none")
        raise ArgumentError(
            where,
            f"a folder or the suffix {', '.join(_SUFFIXES)}",
            f"{where.suffix or 'none'!r}",
            fix="format= says what it is",
        )
    return form


def _fits(value: Any, form: str) -> bool:
    text = isinstance(value, str) and value != ""
    texts = isinstance(value, (list, tuple)) and all(isinstance(v, str) and v for v in value)
    if form == _COUNT:
        return isinstance(value, int) and not isinstance(value, bool) and value > 0
    return text if form == _TEXT else texts if form == _TEXTS else text or (texts and value != [])


def _open_dataset(name: str, options: dict[str, Any]) -> Source:
    with _named(name), current_folder_first(), returning("dataset", name):
        made = find_callable(name, "dataset")()
    options.setdefault("name", name)
    if isinstance(made, Source):
        if len(options) > 1:
            raise ArgumentError(
                "dataset", f"no options for {name!r}, which returns a source", ", ".join(options)
            )
        return made
    try:
        return as_source(made, **options)
    except (TypeError, ValueError, OSError):
        raise
    except Exception as error:
        raise _failed(name, error) from error


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Whatever goes wrong in a function that is the caller's own, as one error that names it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) and error.argument == "dataset":
            raise
        raise _failed(name, error) from error


def _failed(name: str, error: Exception) -> ValueError:
    line = " ".join(str(error).split())
    found = f"{type(error).__name__}: {line}" if line else type(error).__name__
    return ArgumentError("dataset", f"{name!r} to return a dataset", found)


def as_source(data: Any, name: str | None = None, **options: Any) -> Source:
    """A source of what a caller has: itself, a path or specification, arrays, a dataset, batches.

    Args:
        data: a source; a path or mapping for :func:`open_source`; a pair (features, labels) of
            tensors, arrays or data frames; a dataset with `__len__` and `__getitem__` (torch's,
            torchvision's, Hugging Face's); an iterable of batches that can be read again, or a
            function that returns one.
        name: how reports call it.
        options: of the class that reads it.

    Raises:
        TypeError, ValueError: naming what was expected and what came.
    """
    if isinstance(data, Source):
        return data
    named = {} if name is None else {"name": name}
    if isinstance(data, (str, os.PathLike)):
        return open_source({"path": os.fspath(data)} | named | options)
    if isinstance(data, Mapping):
        return open_source({**data, **named, **options})
    if isinstance(data, tuple) and len(data) == 2 and all(map(is_array_like, data)):
        return ArraySource(*data, **named, **options)
    map_style = isinstance(data, torch.utils.data.Dataset) and hasattr(data, "__len__")
    if map_style or hasattr(data, "column_names"):
        return DatasetSource(data, **named, **options)
    if isinstance(data, Iterable) or callable(data):
        return BatchSource(data, **named, **options)
    raise ArgumentTypeError(
        "data",
        "a source, a path, a mapping, arrays (features, labels), a dataset or batches",
        describe(data),
    )
