"""What cannot be read is named and counted, and skipped or fatal: never a part of it in silence."""

import os

import numpy as np
import pytest
import torch
from helpers import optional, sources_made
from helpers.sources_made import ROWS, png, pyarrow, write_tar

from resque_ext.data.sources import (
    BlockOrder,
    DatasetSource,
    ImageFolderSource,
    NpySource,
    ParquetSource,
    SourceError,
    TarSource,
)
from resque_ext.screening.results import Fault


def read(case, **options):
    """The rows that came, the sizes of the batches, and the faults."""
    faults = []
    batches = list(case.source.batches(10, on_fault="skip", faults=faults, **options))
    return case.numbers(batches), [len(y) for _, y in batches], faults


def test_an_image_that_cannot_be_read(tmp_path):
    case = sources_made.make("images", tmp_path)
    bad = {0: b"", 14: b"no image", 15: png(15)[:40], 52: png(52)[:-30]}
    for row, content in bad.items():
        (tmp_path / f"class{row // 11}" / f"{row:03d}.png").write_bytes(content)
    rows, sizes, faults = read(case)
    assert rows == [row for row in range(ROWS) if row not in bad]
    assert sizes == [10, 10, 10, 10, 9]  # filled up from the rows that follow
    assert [f.source for f in faults] == [
        str(tmp_path / f"class{row // 11}" / f"{row:03d}.png") for row in bad
    ]
    assert all(f.message.startswith("expected an image, found ") for f in faults)
    with pytest.raises(SourceError, match=r"class0/000\.png: expected an image, found") as caught:
        list(case.source.batches(10))
    assert caught.value.fault == faults[0]


def test_faults_are_told_once_whoever_shares_the_reading(tmp_path):
    case = sources_made.make("images", tmp_path)
    for row in (3, 30):
        (tmp_path / f"class{row // 11}" / f"{row:03d}.png").write_bytes(b"")
    for order in (None, BlockOrder(1)):
        shares = [read(case, rank=rank, world_size=3, order=order) for rank in range(3)]
        assert sorted(row for s in shares for row in s[0]) == sorted(set(range(ROWS)) - {3, 30})
        assert sum(len(s[2]) for s in shares) == 2


def test_an_image_that_is_far_too_large(tmp_path):
    """A PNG of a few bytes whose header declares 100,000 x 100,000 pixels."""
    content = bytearray(png(1))
    at = content.find(b"IHDR") + 4
    content[at : at + 8] = (100_000).to_bytes(4, "big") * 2
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(content)
    with pytest.raises(SourceError, match=r"0\.png: expected an image, found"):
        next(ImageFolderSource(tmp_path).batches(1))


def damage(path, at, count=600):
    content = bytearray(path.read_bytes())
    content[at : at + count] = b"\xa5" * count
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:9_000]), "some"),
        (lambda path: path.write_bytes(path.read_bytes()[:-10_240]), "none"),
        (lambda path: damage(path, 8_192), "some"),
        (lambda path: damage(path, 0), "all"),
        (lambda path: path.write_bytes(b""), "all"),
        (lambda path: path.unlink(), "all"),
    ],
    ids=["cut", "no end", "header in the middle", "first header", "empty", "gone"],
)
def test_a_shard_that_is_damaged(tmp_path, change, lost):
    case = sources_made.make("tar_images", tmp_path)
    middle = tmp_path / "data-01.tar"
    change(middle)
    rows, _, faults = read(case)
    inside = [row for row in rows if 20 <= row < 40]
    assert [r for r in rows if not 20 <= r < 40] == [*range(20), *range(40, ROWS)]
    assert {"some": 0 < len(inside) < 20, "none": len(inside) == 20, "all": not inside}[lost]
    assert inside == list(range(20, 20 + len(inside)))
    # The sample that was cut off from its label, if any, and the shard.
    assert 1 <= len(faults) <= 2
    assert {f.source for f in faults} == {str(middle)}
    assert faults[-1].member is None or faults[0].member is None
    shares = [read(case, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(row for s in shares for row in s[0]) == rows
    assert sum(len(s[2]) for s in shares) == len(faults)
    with pytest.raises(SourceError, match="data-01"):
        list(case.source.batches(10))


def test_every_cut_of_a_shard_is_told(tmp_path):
    members = [("0.png", png(0)), ("0.cls", b"0"), ("1.png", png(1)), ("1.cls", b"0")]
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    path = tmp_path / "a.tar"
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # whole with one block of zeros behind it
    for length in range(512, end + 1, 97):
        path.write_bytes(whole[:length])
        faults = []
        list(TarSource(path).batches(4, on_fault="skip", faults=faults))
        assert faults, f"{length} of {len(whole)} bytes"
    path.write_bytes(whole)
    assert len(next(TarSource(path).batches(4))[1]) == 2


def test_a_row_group_that_is_damaged(tmp_path):
    case = sources_made.make("parquet", tmp_path)
    options = {"compression": "none", "use_dictionary": False}
    sources_made.parquet(tmp_path, write_page_checksum=True, **options)
    path = tmp_path / "a.parquet"
    with pyarrow.parquet.ParquetFile(path) as file:
        column = file.metadata.row_group(2).column(0)
        damage(path, column.data_page_offset + column.total_compressed_size - 40, 20)
    case = sources_made.Case(ParquetSource(path))
    rows, sizes, faults = read(case)
    assert rows == [*range(20), *range(30, ROWS)]
    assert sizes == [10, 10, 10, 10, 3]
    assert [(f.source, f.member) for f in faults] == [(str(path), "row group 2")]
    assert faults[0].message.startswith("rows 20 to 29: ")
    with pytest.raises(SourceError, match="row group 2: rows 20 to 29"):
        list(case.source.batches(10))


def test_nulls_in_a_table_are_faults(tmp_path):
    table = sources_made.table()
    column = pyarrow.array([None if row == 15 else row // 11 for row in range(ROWS)])
    pyarrow.parquet.write_table(
        table.set_column(1, "labels", column), tmp_path / "a.parquet", row_group_size=10
    )
    case = sources_made.Case(ParquetSource(tmp_path / "a.parquet"))
    rows, _, faults = read(case)
    assert rows == [*range(15), *range(16, ROWS)]
    assert [f.message for f in faults] == ["labels: expected a label, found null"]


class Failing(sources_made.Pictures):
    def __getitem__(self, row):
        if row in (7, 40):
            raise RuntimeError(f"no {row}\nand more")
        return super().__getitem__(row)


def test_a_file_that_becomes_shorter_while_it_is_read(tmp_path):
    np.save(tmp_path / "features.npy", np.ones((10, 4), np.float32))
    np.save(tmp_path / "labels.npy", np.zeros(10, np.int64))
    source = NpySource(tmp_path)
    os.truncate(tmp_path / "features.npy", 128 + 5 * 16)
    faults = []
    batches = list(source.batches(4, on_fault="skip", faults=faults))
    assert [len(y) for _, y in batches] == [4]
    assert [f.message.partition(":")[0] for f in faults] == ["rows 4 to 7", "rows 8 to 9"]
    with pytest.raises(SourceError, match=r"rows 4 to 7: expected 48 bytes more at 208, found the"):
        list(source.batches(4))


def test_an_item_of_another_kind_is_named(tmp_path):
    items = [(torch.ones(3), 0), (torch.ones(3), "one"), (torch.ones(3), 2)]
    faults = []
    source = DatasetSource(items, kind="embeddings")
    batches = list(source.batches(3, on_fault="skip", faults=faults))
    assert [y.tolist() for _, y in batches] == [[0, 2]]
    assert [(f.member, f.message) for f in faults] == [
        ("row 1", "expected an integer label, found 'one'")
    ]


def test_every_row_group_is_mixed_in_its_own_way(tmp_path):
    values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.arange(64.0)), 1)
    table = pyarrow.table({"features": values, "labels": pyarrow.array(np.zeros(64, np.int64))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=32)
    (x, _), (z, _) = ParquetSource(tmp_path / "a.parquet").batches(32, order=BlockOrder(5))
    assert sorted((x % 32).flatten().tolist()) == list(range(32))
    assert (x % 32).flatten().tolist() != (z % 32).flatten().tolist()


def test_labels_beyond_int64_are_faults_of_their_row_group(tmp_path):
    values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.zeros(8, np.float32)), 2)
    for labels, lost in (([1, 2, 3, 2**63], 2), ([1, 2, 3, 4], 0)):
        table = pyarrow.table({"features": values, "labels": pyarrow.array(labels, "uint64")})
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
        faults = []
        batches = ParquetSource(tmp_path / "a.parquet").batches(4, on_fault="skip", faults=faults)
        assert sum(len(y) for _, y in batches) == 4 - lost
        assert [f.member for f in faults] == ["row group 1"] * bool(lost)


@pytest.mark.parametrize("sizes", [(5, 0), (0, 5), (5, 5, 0), (0, 3, 0, 0, 4, 0)])
def test_row_groups_without_rows(tmp_path, sizes):
    schema = pyarrow.schema(
        [("features", pyarrow.list_(pyarrow.float32(), 2)), ("labels", pyarrow.int64())]
    )
    rows = np.arange(sum(sizes))
    with pyarrow.parquet.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for part in np.split(rows, np.cumsum(sizes)[:-1]):
            numbers = [[float(row)] * 2 for row in part]
            table = pyarrow.table({"features": numbers, "labels": part}, schema=schema)
            writer.write_table(table)
    source = ParquetSource(tmp_path / "a.parquet")
    assert len(source._edges) == len(sizes) + 1
    for order in (None, *map(BlockOrder, range(12))):
        for size in (3, 4, 100):
            found = [int(v) for x, _ in source.batches(size, order=order) for v in x[:, 0]]
            assert sorted(found) == rows.tolist()


def test_an_item_that_fails(tmp_path):
    case = sources_made.Case(DatasetSource(Failing(), "mine"), sources_made.by_brightness)
    rows, _, faults = read(case)
    assert rows == [row for row in range(ROWS) if row not in (7, 40)]
    assert faults == [
        Fault("mine", f"row {row}", f"RuntimeError: no {row} and more") for row in (7, 40)
    ]


def test_all_rows_may_fail(tmp_path):
    optional.module("torchvision")
    (tmp_path / "a").mkdir()
    for i in range(3):
        (tmp_path / "a" / f"{i}.png").write_bytes(b"")
    faults = []
    source = ImageFolderSource(tmp_path)
    assert list(source.batches(2, on_fault="skip", faults=faults)) == []
    assert len(faults) == 3
    assert np.unique([f.source for f in faults]).size == 3
