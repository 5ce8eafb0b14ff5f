"""The same 53 rows as a source of every kind, and how to see which rows have come."""

import io
import tarfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch

from helpers import optional
from resque_ext.data import sources

pyarrow = optional.Module("pyarrow", "parquet")
Image = optional.Module("PIL.Image")
ROWS = 53


def values(rows=ROWS, width=3, dtype=np.float32):
    """Row i is i * width, i * width + 1, ..."""
    return np.arange(rows * width, dtype=dtype).reshape(rows, width)


def labels(rows=ROWS):
    """Sorted, as a folder of classes has them."""
    return np.arange(rows) // 11


@dataclass
class Case:
    source: Any
    row_of: Any = lambda x: (x[:, 0] / 3).long()

    def numbers(self, batches):
        """The rows' numbers, once it is certain that inputs and labels belong together."""
        found = []
        for x, y in batches:
            rows = self.row_of(x)
            assert len(x) == len(y) > 0
            assert y.tolist() == (rows // 11).tolist()
            found += rows.tolist()
        return found


def by_brightness(x):
    assert x.shape[1] == 3
    return (x[:, 0, 0, 0] * 255).round().long()


def image(row, size=(4, 5)):
    optional.module("torchvision")  # what makes numbers of images needs it
    return Image.fromarray(np.full((*size, 3), row, dtype=np.uint8))


def png(row):
    out = io.BytesIO()
    image(row).save(out, "png")
    return out.getvalue()


def npy_bytes(x):
    out = io.BytesIO()
    np.save(out, x)
    return out.getvalue()


def npy(folder, x=None, y=None):
    np.save(folder / "features.npy", values() if x is None else x)
    np.save(folder / "labels.npy", labels() if y is None else y)
    return sources.NpySource(folder)


def npz(folder):
    np.savez(folder / "a.npz", features=values(), labels=labels())
    return sources.open_npz(folder / "a.npz")


def tensors(folder, dtype=torch.bfloat16):
    x = torch.from_numpy(values()).to(dtype)
    content = {"x": x, "other": torch.ones(3), "y": torch.from_numpy(labels())}
    safetensors.torch.save_file(content, folder / "a.safetensors")
    return sources.SafetensorsSource(folder / "a.safetensors", "x", "y")


def table(x=None, y=None):
    x = values() if x is None else x
    flat = pyarrow.array(x.reshape(-1))
    return pyarrow.table(
        {
            "features": pyarrow.FixedSizeListArray.from_arrays(flat, x.shape[1]),
            "labels": pyarrow.array(labels(len(x)) if y is None else y),
        }
    )


def parquet(folder, x=None, **options):
    path = folder / "a.parquet"
    pyarrow.parquet.write_table(table(x), path, row_group_size=10, **options)
    return sources.ParquetSource(path)


def write_tar(path, members):
    """Members: (name, bytes), or a TarInfo that has no content."""
    with tarfile.open(path, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return path


def shards(folder, member, rows=ROWS):
    """Three shards, of 20, 20 and what is left."""
    for shard in range(3):
        content = []
        for row in range(20 * shard, min(20 * shard + 20, rows)):
            name, data = member(row)
            label = ("cls", b"%d\n" % (row // 11))
            if row % 2:
                label = ("json", b'{"label": %d, "text": "a"}' % (row // 11))
            content += [(name, data), (f"{name.split('.')[0]}.{label[0]}", label[1])]
        write_tar(folder / f"data-{shard:02d}.tar", content)
    return folder / "data-{00..02}.tar"


def tar_images(folder):
    return sources.TarSource(shards(folder, lambda row: (f"a/{row:03d}.png", png(row))), rows=ROWS)


def tar_features(folder):
    pattern = shards(folder, lambda row: (f"{row:03d}.npy", npy_bytes(values()[row])))
    return sources.TarSource([pattern], kind="embeddings", rows=ROWS)


def images(folder):
    for row in range(ROWS):
        path = folder / f"class{row // 11}" / f"{row:03d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(row))
    return sources.ImageFolderSource(folder)


class Pictures(torch.utils.data.Dataset):
    """As torchvision's: pairs of a PIL image and a class."""

    classes = ("zero", "one", "two", "three", "four")

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        if not 0 <= row < ROWS:
            raise IndexError(row)
        return image(row), row // 11


class ClassLabel:
    names = ("a", "b", "c", "d", "e")


class Columns:
    """What `datasets.Dataset` documents: rows are dicts, columns have names and features."""

    column_names = ("id", "embedding", "label")
    features = {"id": None, "embedding": None, "label": ClassLabel()}  # noqa: RUF012
    _fingerprint = "0123456789abcdef"

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        return {"id": str(row), "embedding": values()[row].tolist(), "label": row // 11}


def columns(folder):
    return sources.DatasetSource(Columns(), "hub", "embeddings", ("embedding", "label"))


def in_batches(size=7):
    x, y = torch.from_numpy(values()), torch.from_numpy(labels())
    return list(zip(x.split(size), y.split(size), strict=True))


BRIGHT = {"tar_images", "images", "pictures"}
MAKERS = {
    "arrays": lambda folder: sources.ArraySource(values(), labels()),
    "npy": npy,
    "npz": npz,
    "safetensors": tensors,
    "parquet": parquet,
    "tar_images": tar_images,
    "tar_features": tar_features,
    "images": images,
    "pictures": lambda folder: sources.DatasetSource(Pictures(), "pictures"),
    "columns": columns,
    "batches": lambda folder: sources.BatchSource(in_batches(), rows=ROWS),
}


def make(kind, folder):
    source = MAKERS[kind](folder)
    return Case(source, by_brightness) if kind in BRIGHT else Case(source)
