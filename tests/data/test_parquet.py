"""Parquet as pandas, polars, Hugging Face datasets and pyarrow write it; pyarrow's lists are the
oracle."""

import io
import json

import numpy as np
import pytest
import torch
from helpers import optional

from resque_ext.data.sources import BlockOrder, ParquetSource, SourceError, open_source

pyarrow = optional.Module("pyarrow", "parquet")

ROWS = 23
X = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
Y = np.arange(ROWS) % 3
NAMES = ["ant", "cat", "dog"]


def by_pandas(path, x, y):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"features": list(x), "labels": y}).to_parquet(path)


def by_pandas_lists(path, x, y):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"features": x.tolist(), "labels": y}).to_parquet(path, row_group_size=6)


def by_polars(path, x, y):
    polars = pytest.importorskip("polars")
    polars.DataFrame({"features": x.tolist(), "labels": y}).write_parquet(path, row_group_size=5)


def by_polars_array(path, x, y):
    polars = pytest.importorskip("polars")
    polars.DataFrame({"features": x, "labels": y}).write_parquet(path)


def by_datasets(path, x, y):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"features": x, "labels": y}).to_parquet(path, batch_size=7)


def by_datasets_array(path, x, y):
    datasets = pytest.importorskip("datasets")
    shape = datasets.Array2D((1, 4), "float32")
    kinds = datasets.Features({"features": shape, "labels": datasets.ClassLabel(names=NAMES)})
    rows = {"features": x[:, None], "labels": y}
    datasets.Dataset.from_dict(rows, features=kinds).to_parquet(path)


def write(path, x, y, kind=None, row_group_size=6):
    table = pyarrow.table({"features": pyarrow.array(x, kind), "labels": pyarrow.array(y)})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)


def by_pyarrow(kind):
    return lambda path, x, y: write(path, x.tolist(), y, kind)


FLOAT = pyarrow.float32()
WRITERS = {
    "pandas": by_pandas,
    "pandas lists": by_pandas_lists,
    "polars": by_polars,
    "polars array": by_polars_array,
    "datasets": by_datasets,
    "datasets array": by_datasets_array,
    "list": by_pyarrow(pyarrow.list_(FLOAT)),
    "large_list": by_pyarrow(pyarrow.large_list(FLOAT)),
    "fixed_size_list": by_pyarrow(pyarrow.list_(FLOAT, 4)),
    "float64": by_pyarrow(pyarrow.list_(pyarrow.float64())),
}


def read(source, **options):
    batches = list(source.batches(5, **options))
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    return x.numpy(), y.numpy()


@pytest.mark.parametrize("writer", WRITERS)
def test_embeddings_of_every_writer(tmp_path, writer):
    WRITERS[writer](tmp_path / "a.parquet", X, Y)
    source = ParquetSource(tmp_path / "a.parquet")
    assert (source.rows, source.kind) == (ROWS, "embeddings")
    x, y = read(source)
    assert x.reshape(ROWS, -1).tolist() == X.tolist()
    assert y.tolist() == Y.tolist()
    assert (source.classes == tuple(NAMES)) == (writer == "datasets array")
    shares = [read(source, rank=r, world_size=2)[1].tolist() for r in (0, 1)]
    assert shares[0] + shares[1] == Y.tolist()
    mixed, labels = read(source, order=BlockOrder(3))
    rows = [X.tolist().index(row) for row in mixed.reshape(ROWS, -1).tolist()]
    assert sorted(rows) == list(range(ROWS)) != rows
    assert labels.tolist() == Y[rows].tolist()


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "int64", "float16", "float64"]
)
def test_values_of_every_type(tmp_path, dtype):
    values = (X * 20 + 100).astype(dtype)
    write(tmp_path / "a.parquet", list(values), Y)
    found = read(ParquetSource(tmp_path / "a.parquet"))[0]
    assert found.tolist() == values.astype(np.float64).tolist()


def test_maps_and_fixed_shape_tensors(tmp_path):
    maps = np.arange(ROWS * 24, dtype=np.float32).reshape(ROWS, 2, 3, 4)
    write(tmp_path / "a.parquet", maps.tolist(), Y, None)
    assert read(ParquetSource(tmp_path / "a.parquet"))[0].tolist() == maps.tolist()
    tensors = pyarrow.FixedShapeTensorArray.from_numpy_ndarray(X)
    table = pyarrow.table({"features": tensors, "labels": Y})
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    assert read(ParquetSource(tmp_path / "b.parquet"))[0].tolist() == X.tolist()


def test_several_files_folders_and_patterns(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(3):
        part = slice(8 * i, 8 * i + 8)
        path = tmp_path / "data" / f"train-{i:05d}-of-00003.parquet"
        write(path, X[part].tolist(), Y[part], pyarrow.list_(FLOAT))
    (tmp_path / "data" / "_SUCCESS").write_bytes(b"")
    (tmp_path / "data" / ".old").mkdir()
    (tmp_path / "data" / ".old" / "x.parquet").write_bytes(b"no Parquet")
    files = [f"data/train-{i:05d}-of-00003.parquet" for i in range(3)]
    for path in ("data", "data/train-*.parquet", "data/*.parquet", files):
        source = open_source({"path": path}, tmp_path)
        x, y = read(source)
        assert x.tolist() == X.tolist()
        assert y.tolist() == Y.tolist()
        shares = [read(source, rank=r, world_size=3)[1].tolist() for r in range(3)]
        assert [y for share in shares for y in share] == Y.tolist()
    twice = ParquetSource([tmp_path / files[1], tmp_path / files[0]])
    assert read(twice)[0].tolist() == [*X[8:16].tolist(), *X[:8].tolist()]
    for path in ("data/none-*.parquet", "data/none.parquet", []):
        with pytest.raises((ValueError, FileNotFoundError), match="expected"):
            ParquetSource(path if path == [] else tmp_path / path)


def test_files_of_other_types_are_refused_by_name(tmp_path):
    write(tmp_path / "a.parquet", X.tolist(), Y, pyarrow.list_(FLOAT))
    write(tmp_path / "b.parquet", X.tolist(), Y, pyarrow.list_(pyarrow.float64()))
    with pytest.raises(ValueError, match=r"b\.parquet: features: expected float as in .*a\.par"):
        ParquetSource(tmp_path)


LISTS = [pyarrow.list_(FLOAT), pyarrow.large_list(FLOAT), pyarrow.list_(FLOAT, 4)]


@pytest.mark.parametrize("kind", LISTS, ids=str)
@pytest.mark.parametrize("order", [None, BlockOrder(1)])
def test_a_row_that_cannot_be_read_is_a_fault_of_its_own(tmp_path, kind, order):
    rows, labels = X.tolist(), Y.tolist()
    rows[2], rows[9] = None, [1.0, None, 2.0, 3.0]
    labels[10] = None
    bad = {2: "features: expected a value, found null", 9: "features: expected a value, found"}
    bad[10] = "labels: expected a label, found null"
    if not pyarrow.types.is_fixed_size_list(kind):
        rows[20] = [1.0, 2.0]
        bad[20] = "features: expected 4 values, found 2"
    write(tmp_path / "a.parquet", rows, labels, kind)
    source = ParquetSource(tmp_path / "a.parquet")
    faults = []
    x, y = read(source, order=order, on_fault="skip", faults=faults)
    good = [i for i in range(ROWS) if i not in bad]
    found = [X.tolist().index(row) for row in x.tolist()]
    assert (sorted(found) if order else found) == good
    assert y.tolist() == Y[found].tolist()
    assert sorted(f.member for f in faults) == sorted(f"row {i}" for i in bad)
    for fault in faults:
        assert fault.message.startswith(bad[int(fault.member.split()[1])])
    # Whoever reads none of these rows meets no fault, and each is one rank's alone.
    assert read(source, start=11, stop=20)[1].tolist() == Y[11:20].tolist()
    shares = []
    for rank in range(2):
        read(source, rank=rank, world_size=2, order=order, on_fault="skip", faults=shares)
    assert len(shares) == len(bad)
    with pytest.raises(SourceError, match=r"a\.parquet: row \d+: (features|labels): expected"):
        read(source, order=order)


def test_the_first_row_with_values_tells_the_shape(tmp_path):
    write(tmp_path / "a.parquet", [None, [], X[0].tolist(), X[1].tolist()], Y[:4])
    faults = []
    x, _ = read(ParquetSource(tmp_path / "a.parquet"), on_fault="skip", faults=faults)
    assert x.tolist() == X[:2].astype(np.float64).tolist()
    assert [f.member for f in faults] == ["row 0", "row 1"]
    write(tmp_path / "b.parquet", [None, None], [0, 1], pyarrow.list_(FLOAT))
    with pytest.raises(ValueError, match="features: expected values, found nulls alone"):
        ParquetSource(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
    ids=str,
)
def test_names_of_classes(tmp_path, kind):
    names = [NAMES[y] for y in Y]
    write(tmp_path / "a.parquet", X.tolist(), pyarrow.array(names, pyarrow.string()).cast(kind))
    source = ParquetSource(tmp_path / "a.parquet")
    assert source.classes == ("ant", "cat", "dog")
    assert read(source)[1].tolist() == Y.tolist()
    other = ParquetSource(tmp_path / "a.parquet", classes=["dog", "cat", "ant"])
    assert read(other)[1].tolist() == (2 - Y).tolist()
    faults = []
    fewer = ParquetSource(tmp_path / "a.parquet", classes=["cat", "ant"])
    assert read(fewer, on_fault="skip", faults=faults)[1].tolist() == (1 - Y)[Y < 2].tolist()
    assert faults[0].member == "row 2"
    assert faults[0].message == "labels: expected one of ant, cat, found 'dog'"


def png(row):
    data = io.BytesIO()
    optional.module("PIL.Image").fromarray(np.full((2, 3), 1000 * row, np.uint16)).save(data, "png")
    return data.getvalue()


@pytest.mark.parametrize("form", ["bytes", "large", "struct", "datasets"])
def test_images(tmp_path, form):
    data = [png(row) for row in range(ROWS)]
    if form == "datasets":
        datasets = pytest.importorskip("datasets")
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
        rows = {"image": [{"bytes": b, "path": None} for b in data], "label": Y}
        made = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
        made.to_parquet(tmp_path / "a.parquet")
    else:
        image = pyarrow.array(data, pyarrow.large_binary() if form == "large" else None)
        if form == "struct":
            image = pyarrow.array([{"bytes": b, "path": None} for b in data])
        table = pyarrow.table({"image": image, "label": Y})
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=6)
    source = ParquetSource(tmp_path / "a.parquet", "image", "label", kind="inputs")
    x, y = read(source)
    expected = np.broadcast_to(
        (1000 * np.arange(ROWS) / 65_535)[:, None, None, None], (ROWS, 3, 2, 3)
    )
    np.testing.assert_allclose(x, expected, atol=1e-7)
    assert y.tolist() == Y.tolist()


def test_damaged_and_missing_images_are_faults_of_their_own(tmp_path):
    data = [png(0), b"no image", None, png(3)]
    table = pyarrow.table({"inputs": pyarrow.array(data, pyarrow.binary()), "labels": Y[:4]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    faults = []
    source = ParquetSource(tmp_path / "a.parquet", kind="inputs")
    assert read(source, on_fault="skip", faults=faults)[1].tolist() == [0, 0]
    assert [f.member for f in faults] == ["row 1", "row 2"]


def test_arrays_as_inputs_of_a_model(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (ROWS, 3, 4, 5), dtype=np.uint8)
    kind = pyarrow.list_(pyarrow.list_(pyarrow.list_(pyarrow.uint8())))
    write(tmp_path / "a.parquet", images.tolist(), Y, kind)
    options = {"kind": "inputs", "features": "features"}
    source = open_source({"path": "a.parquet", **options}, tmp_path)
    np.testing.assert_allclose(read(source)[0], images / 255, atol=1e-7)
    half = ParquetSource(tmp_path / "a.parquet", transforms=['center_crop={"size": 2}'], **options)
    np.testing.assert_allclose(read(half)[0], images[:, :, 1:3, 1:3] / 255, atol=1e-7)
    # Python's own floats are float64, which no layer of a model takes.
    write(tmp_path / "b.parquet", X.tolist(), Y)
    found = read(ParquetSource(tmp_path / "b.parquet", **options))[0]
    assert found.dtype == np.float32
    assert found.tolist() == X.tolist()
    tokens = np.arange(ROWS * 4).reshape(ROWS, 4)
    write(tmp_path / "c.parquet", tokens.tolist(), Y)
    found = read(ParquetSource(tmp_path / "c.parquet", **options))[0]
    assert found.dtype == np.int64
    assert found.tolist() == tokens.tolist()


@pytest.mark.parametrize("info", ["[" * 5000, json.dumps({"info": {"features": {"labels": 3}}})])
def test_metadata_that_names_no_classes(tmp_path, info):
    table = pyarrow.table({"features": X.tolist(), "labels": Y})
    table = table.replace_schema_metadata({"huggingface": info})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert ParquetSource(tmp_path / "a.parquet").classes is None
