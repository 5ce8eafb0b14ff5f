"""EmbeddingCache: what a model made of a dataset, kept on disk, so that a model runs once.

An entry is a folder with features.npy, labels.npy and manifest.json. It is written under another
name and renamed when it is whole, so whatever happens there is never half of one under its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resque_ext.data.checks import check_features, check_labels, check_pair, describe
from resque_ext.data.sources.base import Fault, Source
from resque_ext.data.sources.npy import NpySource
from resque_ext.errors import ArgumentError
from resque_ext.model.digest import weights_digest
from resque_ext.storage.atomic import sync_folder
from resque_ext.storage.json_text import parse_json

FORMAT = "resque_ext.EmbeddingCache/2"
_FILES = ("features.npy", "labels.npy")
_DTYPES = {torch.float16: "<f2", torch.float32: "<f4", torch.float64: "<f8"}
_TEMPORARY = ".writing-"
_OLD_SECONDS = 60  # a temporary folder's lock is there by then
_HEADER = 128  # bytes of a .npy header, whatever the number of rows


@dataclass(frozen=True)
class CacheKey:
    """What an entry was made of; entries are the same where all of it is.

    Attributes:
        weights: digest of the model, see :func:`weights_digest`.
        layer: whose output was kept, and how it was pooled.
        source: fingerprint of the data.
        transforms: what was done to the inputs besides.
        dtype: in which the features are kept and the model ran.
        run: what else the last bits of the features depend on, such as the batches; None: nothing
            is said of it.
    """

    weights: str
    layer: str
    source: dict[str, Any]
    transforms: tuple[str, ...] = ()
    dtype: str = "float32"
    run: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module | str,
        layer: str,
        source: Source,
        transforms: Sequence[str] = (),
        dtype: str = "float32",
    ) -> CacheKey:
        """The key of a model (or its digest) on a source.

        Raises:
            ValueError: nothing tells the source's data from others.
        """
        found = source.fingerprint()
        if found is None:
            raise ArgumentError(
                "source",
                f"{source.name} to have a fingerprint",
                "None: nothing would tell when its data are others",
                fix="fingerprint= gives one",
            )
        weights = model if isinstance(model, str) else weights_digest(model)
        return cls(weights, layer, found, tuple(transforms), dtype)

    def to_dict(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def digest(self) -> str:
        """Name of the entry: 64 hexadecimal digits."""
        text = json.dumps([FORMAT, self.to_dict()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class CachedEmbeddings(NpySource):
    """An entry of a cache, of kind "embeddings".

    Attributes:
        faults: what had been left out of the source when the entry was made.
        facts: what else its writer said of it.
    """

    def __init__(self, folder: Path, name: str, manifest: dict[str, Any]) -> None:
        super().__init__(folder, name=name)
        self.faults = tuple(Fault(**fault) for fault in manifest["faults"])
        classes = manifest["classes"]
        self.classes = None if classes is None else tuple(classes)
        self.facts: dict[str, Any] = manifest["facts"]
        self._digest = manifest["digest"]

    def fingerprint(self) -> dict[str, Any] | None:
        return {"format": FORMAT, "digest": self._digest}


class EmbeddingCache:
    """Embeddings on disk.

    Any number of processes may use one folder at once.

    Args:
        folder: made where there is none.
        limit_bytes: what all entries may take; beyond it those go first that were asked for last
            of all the longest ago. None: no limit. An entry that is being read may go, too.
        verify: whether the checksum of an entry is computed again before it is used, which reads
            all of it; its sizes and headers are checked in any case.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        limit_bytes: int | None = None,
        verify: bool = False,
    ) -> None:
        if limit_bytes is not None and (isinstance(limit_bytes, bool) or limit_bytes < 0):
            raise ArgumentError("limit_bytes", "at least 0 or None", f"{limit_bytes!r}")
        self.folder, self.limit_bytes, self.verify = Path(folder), limit_bytes, verify
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_left_over()

    def get(self, key: CacheKey, name: str | None = None) -> CachedEmbeddings | None:
        """The entry, or None; one that is damaged or foreign is none, with a warning."""
        path = self.folder / key.digest
        try:
            manifest = parse_json((path / "manifest.json").read_text())
            self._check(path, manifest, key)
            entry = CachedEmbeddings(path, name or str(path), manifest)
            if list(manifest["shape"]) != [entry.rows, *entry.row_shape]:
                raise ValueError(f"expected shape {manifest['shape']} as its manifest says")
        except FileNotFoundError as error:
            if path.exists():
                self._warn(path, error)
            return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            self._warn(path, error)
            return None
        with contextlib.suppress(OSError):  # a folder that cannot be written to can be read
            os.utime(path / "manifest.json")
        return entry

    def _check(self, path: Path, manifest: Any, key: CacheKey) -> None:
        for what, expected in {"format": FORMAT, "key": key.to_dict()}.items():
            if manifest[what] != expected:
                raise ValueError(f"expected the {what} {str(expected)[:100]}, found another")
        for file in _FILES:
            size, digest = manifest["files"][file]
            found = (path / file).stat().st_size
            if found != size:
                raise ArgumentError(file, f"{size} bytes", found)
            if self.verify and _file_digest(path / file) != digest:
                raise ArgumentError(file, "the content of its checksum", "another")

    @staticmethod
    def _warn(path: Path, error: Exception) -> None:
        line = " ".join(str(error).split()) or type(error).__name__
        warnings.warn(
            f"{path}: expected a whole entry of the cache, found {type(error).__name__}: {line}; "
            "it is made again",
            stacklevel=4,
        )

    def put(
        self,
        key: CacheKey,
        batches: Iterable[tuple[Any, Any]],
        *,
        name: str | None = None,
        classes: Sequence[str] | None = None,
        faults: Sequence[Fault] = (),
    ) -> CachedEmbeddings:
        """Writes an entry, batch by batch; another process's whole one of the same key is kept.

        Args:
            key: what it is made of.
            batches: (features, labels); features of one shape and dtype. bfloat16, which .npy has
                no name for, is kept as float32.
            name, classes: of the source.
            faults: what is left out; looked at when the batches are over.

        Raises:
            ValueError, TypeError: batches that do not fit together, or none.
            OSError: the disk is full, say. Nothing is left then.
        """
        with self.writer(key) as entry:
            for features, labels in batches:
                entry.add(features, labels)
            entry.commit(classes=classes, faults=faults)
        found = self.get(key, name)
        if found is None:
            raise OSError(f"{self.folder}: expected the entry that was written, found none")
        return found

    @contextlib.contextmanager
    def writer(self, key: CacheKey) -> Iterator[EntryWriter]:
        """An entry to add batches to; without its `commit` nothing is left of it."""
        with self._writing() as folder, EntryWriter(self, key, folder) as entry:
            yield entry

    def _take(self, folder: Path, key: CacheKey) -> None:
        """A folder that is whole becomes the entry."""
        self._rename(folder, self.folder / key.digest, key)
        self._evict(key.digest)

    def get_or_put(
        self,
        key: CacheKey,
        make: Callable[[], Iterable[tuple[Any, Any]]],
        **options: Any,
    ) -> CachedEmbeddings:
        """The entry; where there is none, of what `make` returns. Options as of `put`."""
        entry = self.get(key, options.get("name"))
        return self.put(key, make(), **options) if entry is None else entry

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Path]:
        """A temporary folder, locked for as long as this process lives."""
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder))
        lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(lock)
            if folder.exists():
                shutil.rmtree(folder)

    def _rename(self, folder: Path, path: Path, key: CacheKey) -> None:
        while True:
            try:
                folder.rename(path)  # in one step, or not at all where something is there
            except OSError as error:
                # Something was there, even if somebody has taken it away meanwhile.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            else:
                break
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if self.get(key) is not None:
                    return  # somebody else's, and whole
            self._discard(path)
        sync_folder(self.folder)

    def _discard(self, path: Path) -> None:
        """Away under another name first, so that nobody sees a part of it."""
        aside = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder))
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            path.rename(aside / "entry")
        shutil.rmtree(aside)

    def _remove_left_over(self) -> None:
        """What processes that were killed had begun to write: nobody holds its lock."""
        for folder in self.folder.glob(f"{_TEMPORARY}*"):
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                if time.time() - folder.stat().st_mtime < _OLD_SECONDS:
                    continue
                lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
                finally:
                    os.close(lock)

    def _evict(self, keep: str) -> None:
        if self.limit_bytes is None:
            return
        entries = []
        for manifest in self.folder.glob("[0-9a-f]*/manifest.json"):
            with contextlib.suppress(FileNotFoundError):
                size = sum(file.stat().st_size for file in manifest.parent.iterdir())
                entries.append((manifest.stat().st_mtime_ns, size, manifest.parent))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total > self.limit_bytes and path.name != keep:
                self._discard(path)
                total -= size


class EntryWriter:
    """features.npy and labels.npy as they grow; see :meth:`EmbeddingCache.writer`."""

    def __init__(self, cache: EmbeddingCache, key: CacheKey, folder: Path) -> None:
        self._cache, self._key, self._folder = cache, key, folder
        self._first: Tensor | None = None
        self.rows = 0

    def __enter__(self) -> EntryWriter:
        with contextlib.ExitStack() as stack:
            self._files = [
                stack.enter_context((self._folder / name).open("w+b")) for name in _FILES
            ]
            for file in self._files:
                file.write(bytes(_HEADER))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, features: Any, labels: Any) -> None:
        """A batch more; arguments and errors as of `put`."""
        x, y = check_features(features), check_labels(labels)
        check_pair(x, y, ("features", "labels"))
        x = x.float() if x.dtype == torch.bfloat16 else x
        first = self._first = x[:0].cpu() if self._first is None else self._first
        if x.shape[1:] != first.shape[1:] or x.dtype != first.dtype:
            raise ArgumentError(
                "features",
                f"rows of shape {tuple(first.shape[1:])}, {first.dtype}, as the first",
                describe(x),
            )
        for file, values in zip(self._files, (x, y.long()), strict=True):
            file.write(memoryview(_bytes(values)))
        self.rows += len(y)

    def commit(
        self,
        *,
        classes: Sequence[str] | None = None,
        faults: Sequence[Fault] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """The entry is there from now on; the headers last, when the number of rows is known."""
        first, files = self._first, self._files
        if first is None or self.rows == 0:
            raise ArgumentError("batches", "at least one row", "none")
        shapes = (self.rows, *first.shape[1:]), (self.rows,)
        kinds = _DTYPES[first.dtype], "<i8"
        for file, shape, kind in zip(files, shapes, kinds, strict=True):
            file.seek(0)
            file.write(_header(shape, kind))
            _sync(file)
        folder = self._folder
        contents = {n: [(folder / n).stat().st_size, _file_digest(folder / n)] for n in _FILES}
        manifest = {
            "format": FORMAT,
            "key": self._key.to_dict(),
            "digest": self._key.digest,
            "shape": list(shapes[0]),
            "dtype": kinds[0],
            "files": contents,
            "classes": None if classes is None else list(classes),
            "faults": [asdict(fault) for fault in faults],
            "facts": dict(facts or {}),
        }
        with (folder / "manifest.json").open("w") as file:
            json.dump(manifest, file, allow_nan=False)
            _sync(file)
        self._cache._take(folder, self._key)


def _bytes(x: Tensor) -> np.ndarray:
    return x.cpu().contiguous().view(-1).view(torch.uint8).numpy() if x.numel() else np.empty(0)


def _header(shape: tuple[int, ...], kind: str) -> bytes:
    """That of a .npy file of version 1.0, filled up with spaces."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    return (
        b"\x93NUMPY\x01\x00"
        + (_HEADER - 10).to_bytes(2, "little")
        + (text.ljust(_HEADER - 11) + "\n").encode("latin1")
    )


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**22):
            digest.update(block)
        return digest.hexdigest()


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
