"""Samples in tar shards, as WebDataset lays them out: the members of a sample share a name.

Nothing is ever extracted: members are found by their headers and read by their place in the shard.
"""

from __future__ import annotations

import io
import math
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from torch import Tensor

from resque_ext.data.checks import as_tensor, check_features
from resque_ext.data.files import content, npy_header
from resque_ext.data.images import IMAGES, image_decoder
from resque_ext.data.sources.base import (
    Batch,
    Kind,
    Reading,
    SourceBase,
    check_kind,
    file_fingerprint,
)
from resque_ext.data.sources.items import batch_of
from resque_ext.data.sources.order import BlockOrder, mixed, permutation
from resque_ext.data.transforms import Transforms
from resque_ext.errors import ArgumentError
from resque_ext.storage.json_text import parse_json

# Samples that a seeded order holds to choose from: places, not data, so they cost little.
_HELD = 4096
_MOST_SHARDS = 1_000_000
_IMAGES = tuple(suffix[1:] for suffix in IMAGES)
_DATA, _LABELS = (*_IMAGES, "npy"), ("cls", "json")


@dataclass
class _Sample:
    """Where the members of a sample lie: by suffix, (offset, size).

    WebDataset ends a key at its first dot, so "7.cls" and "7.mask.png" are of one sample; but keys
    with dots are common too ("img.0007.png"). So a key ends at the last dot, and a neighbour whose
    key goes on where this one ends is of the same sample, unless a number follows ("7" and "7.5").
    """

    shard: int
    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    fault: str | None = None

    def add(self, key: str, suffix: str, place: tuple[int, int]) -> bool:
        """Adds a member; False where it is of another sample."""
        if key != self.key:
            shorter, longer = sorted((key, self.key), key=len)
            more = longer[len(shorter) + 1 :]
            if not longer.startswith(f"{shorter}.") or more.replace(".", "").isdigit():
                return False
            if key == shorter:
                if _whole(self.members, ""):
                    return False
                self.members = {f"{more}.{s}".lower(): p for s, p in self.members.items()}
                self.key = key
            else:
                suffix = f"{more}.{suffix}"
        suffix = suffix.lower()
        if suffix in self.members:
            self.fault = f"expected each member once, found two of .{suffix}"
        self.members[suffix] = place
        return True

    def find(self, suffixes: Sequence[str]) -> list[str]:
        """The members with one of these endings, those that have no more than that first."""
        found = [s for s in self.members if s in suffixes]
        return found or [s for s in self.members if s.rpartition(".")[2] in suffixes]

    def check(self) -> None:
        """Raises ValueError where it has a fault, or another whole sample inside."""
        stems = {s.rpartition(".")[0] for s in self.members} - {""}
        inside = [stem for stem in stems if _whole(self.members, f"{stem}.")]
        if inside and _whole(self.members, ""):
            raise ValueError(
                f"expected samples whose names do not continue each other, found another one, "
                f"{self.key}.{inside[0]}"
            )
        if self.fault is not None:
            raise ValueError(self.fault)


def _whole(members: Mapping[str, Any], stem: str) -> bool:
    """Whether there are data and a label by that name."""
    data = any(f"{stem}{suffix}" in members for suffix in _DATA)
    return data and any(f"{stem}{suffix}" in members for suffix in _LABELS)


@dataclass(frozen=True)
class _Damage:
    """Something of a shard that is not a sample."""

    shard: int
    member: str | None
    message: str


class TarSource(SourceBase):
    """Samples of tar shards: `key.png` or another image, or `key.npy`; and `key.cls` or `key.json`.

    Keys may have dots. A member such as `key.mask.png` is of the sample `key` beside it.

    A tar file has no list of its members, so all its headers are gone through in turn, by every
    rank. A seeded order shuffles the shards and takes the next sample at random from among some
    thousand that follow: an early stop is a sample of the first shards of that order, and of the
    whole only where each shard is one.

    Args:
        paths: one shard or several; ``data-{000..010}.tar`` stands for eleven.
        name: how reports call it; default what was given.
        kind: "inputs", images; or "embeddings", .npy members of one row each.
        label_key: of a .json member.
        rows: how many samples there are, where that is known.
        transforms: of one image [1, 3, H, W], in turn: functions, or texts as
            :func:`resque_ext.data.transforms.make_transform` takes.

    Raises:
        FileNotFoundError, ValueError: one line: path, what was expected, what was found. What is
        wrong further inside is found when it is read.
    """

    access = "shards"
    block_rows = _HELD

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        name: str | None = None,
        kind: Kind = "inputs",
        label_key: str = "label",
        rows: int | None = None,
        transforms: Sequence[Any] = (),
    ) -> None:
        several = not isinstance(paths, (str, os.PathLike))
        given = [os.fspath(p) for p in paths] if several else [os.fspath(paths)]
        self.name, self.kind, self.rows = name or " ".join(given), check_kind(kind), rows
        self._paths = [Path(p) for pattern in given for p in expand(pattern)]
        if not self._paths:
            raise ArgumentError("path", "at least one shard", "an empty list")
        for path in self._paths:
            if not path.exists():
                raise FileNotFoundError(f"{path}: expected a tar shard, found none")
            if not path.is_file():
                raise ArgumentError(path, "a tar shard", "no regular file")
        with self._paths[0].open("rb") as file:
            first = next(_headers(file), None)
        if isinstance(first, str):
            raise ArgumentError(
                self._paths[0],
                "an uncompressed tar archive",
                f"{content(self._paths[0])} ({first})",
            )
        self._label_key, self._transforms = label_key, Transforms(transforms)
        self._decode = image_decoder() if kind == "inputs" else None

    def fingerprint(self) -> dict[str, Any] | None:
        options = {"kind": self.kind, "label_key": self._label_key}
        return self._transforms.named(file_fingerprint("tar", self._paths, options))

    def _pieces(self, reading: Reading) -> Iterator[Batch]:
        place = 0  # in the order, counting the samples that cannot be read
        mine: list[_Sample] = []
        for entry in self._entries(reading.order):
            if reading.stop is not None and place >= reading.stop:
                break
            if isinstance(entry, _Damage):
                teller = reading.faults is None or entry.shard % reading.world_size == reading.rank
                if place >= reading.start and teller:
                    reading.fault(self._paths[entry.shard], entry.member, entry.message)
                continue
            turn = place - reading.start
            if turn >= 0 and turn % reading.world_size == reading.rank:
                mine.append(entry)
            place += 1
            if len(mine) == reading.batch_size:
                yield from self._load(mine, reading)
                mine = []
        else:
            if place == 0 and not reading.faults:
                raise ArgumentError(self.name, "samples in the shards", "none")
        yield from self._load(mine, reading)

    def _entries(self, order: BlockOrder | None) -> Iterator[_Sample | _Damage]:
        if order is None:
            for shard in range(len(self._paths)):
                yield from self._walk(shard)
            return
        held: list[_Sample] = []
        size, drawn = order.rows or self.block_rows, 0
        for shard in permutation(len(self._paths), order.seed).tolist():
            for entry in self._walk(shard):
                if isinstance(entry, _Damage):
                    yield entry
                elif len(held) < size:
                    held.append(entry)
                else:
                    draw = mixed(np.array([drawn], dtype=np.uint64), order.seed + 1)
                    at, drawn = int(draw[0] % np.uint64(size)), drawn + 1
                    held[at], entry = entry, held[at]
                    yield entry
        for at in permutation(len(held), order.seed + 2):
            yield held[at]

    def _walk(self, shard: int) -> Iterator[_Sample | _Damage]:
        """The samples of a shard in the order of their first members."""
        sample: _Sample | None = None
        path = self._paths[shard]
        try:
            file = path.open("rb")
        except OSError as error:
            yield _Damage(shard, None, f"expected a tar shard, found {error}")
            return
        with file:
            for info in _headers(file):
                if isinstance(info, str):
                    if sample is not None:
                        yield sample
                    yield _Damage(shard, None, info)
                    return
                refusal = _refusal(info)
                if refusal is not None:
                    yield _Damage(shard, info.name, refusal)
                if refusal is not None or info.isdir():
                    continue
                folder, slash, base = info.name.rpartition("/")
                stem, dot, suffix = base.rpartition(".")
                key = folder + slash + (stem if dot else base)
                place, suffix = (info.offset_data, info.size), suffix if dot else ""
                if sample is None or not sample.add(key, suffix, place):
                    if sample is not None:
                        yield sample
                    sample = _Sample(shard, key)
                    sample.add(key, suffix, place)
        if sample is not None:
            yield sample

    def _load(self, samples: Sequence[_Sample], reading: Reading) -> Iterator[Batch]:
        with ExitStack() as stack:
            files: dict[int, int] = {}
            for shard in dict.fromkeys(s.shard for s in samples):
                try:
                    files[shard] = os.open(self._paths[shard], os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:  # gone since its headers were read
                    where = self._paths[shard]
                    reading.fault(where, None, f"expected a tar shard, found {error}")
                    continue
                stack.callback(os.close, files[shard])
            items = [
                self._item(sample, files[sample.shard], reading)
                for sample in samples
                if sample.shard in files
            ]
        batch = batch_of(items, self.name)
        if batch is not None:
            yield batch

    def _item(self, sample: _Sample, file: int, reading: Reading) -> tuple[Tensor, int] | None:
        try:
            sample.check()
            data, label = self._data(sample, file), self._label(sample, file)
            return self._decoded(data), label
        except (OSError, ValueError, TypeError) as error:
            reading.fault(self._paths[sample.shard], sample.key, error)
            return None

    def _data(self, sample: _Sample, file: int) -> io.BytesIO:
        wanted = sample.find(_IMAGES if self._decode is not None else ("npy",))
        if len(wanted) != 1:
            what = "one image" if self._decode is not None else "a .npy member"
            raise ValueError(f"expected {what}, found {_listed(sample)}")
        return io.BytesIO(_read(file, *sample.members[wanted[0]]))

    def _decoded(self, data: io.BytesIO) -> Tensor:
        if self._decode is not None:
            return self._transforms.one(self._decode(data))
        return check_features(as_tensor(_array(data), "features").unsqueeze(0))[0]

    def _label(self, sample: _Sample, file: int) -> int:
        labels = sample.find(("cls",)) or sample.find(("json",))
        if len(labels) != 1:
            raise ValueError(f"expected a label (.cls or .json), found {_listed(sample)}")
        content = _read(file, *sample.members[labels[0]])
        if labels[0].endswith("cls"):
            text = content.decode("ascii", "replace").strip()
            if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
                raise ArgumentError(".cls", "an integer", f"{text[:80]!r}")
            return int(text)
        try:
            found = parse_json(content)
        except ValueError as error:
            raise ArgumentError(".json", "JSON", error) from None
        label = found.get(self._label_key) if isinstance(found, dict) else None
        if isinstance(label, bool) or not isinstance(label, int) or abs(label) >= 2**63:
            raise ArgumentError(".json", f"an integer {self._label_key!r}", f"{label!r}")
        return label


class _Bounded:
    """A file of which no more can be asked for than there is: headers may claim any size."""

    def __init__(self, file: Any) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        there = max(self._size - self._file.tell(), 0)
        return self._file.read(there if size < 0 else min(size, there))


def _headers(file: Any) -> Iterator[tarfile.TarInfo | str]:
    """The headers of an archive; last, where it is not whole, what is wrong with it."""
    try:
        archive = tarfile.TarFile(fileobj=_Bounded(file))
        while (info := archive.next()) is not None:
            archive.members = []  # else it keeps all that it has ever seen
            yield info
        # tarfile takes a damaged header for the end, which is a block of zeros.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            yield f"expected the end of the archive at byte {archive.offset}, found a broken one"
    # In damaged bytes tarfile comes upon exceptions of nearly every type.
    except Exception as error:
        yield f"expected a whole uncompressed tar archive, found it damaged: {error}"


def _refusal(info: tarfile.TarInfo) -> str | None:
    path = PurePosixPath(info.name)
    if path.is_absolute() or ".." in path.parts:
        return "expected a name inside of the archive, found a way out of it"
    if info.isdir() or (info.isreg() and not info.issparse()):
        return None
    kind = "a link" if info.islnk() or info.issym() else "another kind of member"
    return f"expected a regular file, found {kind}"


def _read(file: int, offset: int, size: int) -> bytes:
    # A damaged header may say anything, and `pread` makes room for all that it is asked for.
    there = os.fstat(file).st_size - offset
    if not 0 <= size <= there:
        raise OSError(f"expected {size} bytes at {offset}, found {max(there, 0)}")
    data = os.pread(file, size, offset)
    if len(data) != size:
        raise OSError(f"expected {size} bytes at {offset}, found {len(data)}")
    return data


def _array(data: io.BytesIO) -> np.ndarray:
    """The array of a .npy member, which has exactly the bytes that its header says."""
    try:
        shape, _, dtype = npy_header(data)
        # NumPy makes room for all that a header says before it looks for it.
        wanted, found = math.prod(shape) * dtype.itemsize, len(data.getbuffer()) - data.tell()
        if wanted != found:
            raise ValueError(f"expected {wanted} bytes of shape {shape}, found {found}")
        data.seek(0)
        return np.lib.format.read_array(data, allow_pickle=False)
    except ValueError as error:
        raise ArgumentError(".npy", "a numeric array", f"it damaged: {error}") from None


def _listed(sample: _Sample) -> str:
    return ", ".join(f".{suffix}" for suffix in list(sample.members)[:8]) or "nothing"


def expand(pattern: str) -> list[str]:
    """``a-{08..11}.tar`` as a-08.tar, a-09.tar, a-10.tar, a-11.tar; several braces multiply.

    Raises:
        ValueError: braces of another form.
    """
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        if "{" in pattern or "}" in pattern:
            raise ArgumentError("path", "braces as in {000..010}", f"{pattern!r}")
        return [pattern]
    ends = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", found[1], re.ASCII)
    if ends is None or int(ends[1]) > int(ends[2]) or int(ends[2]) - int(ends[1]) >= _MOST_SHARDS:
        raise ArgumentError("path", "braces as in {000..010}", f"{found[0]!r}")
    tails = expand(pattern[found.end() :])
    return [
        f"{pattern[: found.start()]}{number:0{len(ends[1])}d}{tail}"
        for number in range(int(ends[1]), int(ends[2]) + 1)
        for tail in tails
    ]
