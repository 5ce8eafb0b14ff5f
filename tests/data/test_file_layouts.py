"""Byte orders, Fortran order, integers, names with dots, damaged headers: NumPy is the oracle."""

import io
import json
import struct
import tarfile

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.sources_made import npy_bytes, write_tar

import resque_ext as r
from resque_ext.data.files import map_array
from resque_ext.data.sources import BlockOrder, NpySource, SafetensorsSource, TarSource
from resque_ext.storage.json_text import parse_json

ROWS = 23
X = np.random.default_rng(0).integers(0, 100, (ROWS, 4, 3))
Y = np.arange(ROWS) % 3


def read(source, **options):
    batches = list(source.batches(5, **options))
    return torch.cat([x for x, _ in batches]).numpy(), torch.cat([y for _, y in batches]).numpy()


def write(folder, x, y=Y):
    np.save(folder / "features.npy", x)
    np.save(folder / "labels.npy", y)
    return NpySource(folder)


DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_npy_of_every_layout(tmp_path, order, dtype, layout):
    labels = Y.astype(f"{order}{'i8' if dtype[0] == 'f' else dtype}")
    source = write(tmp_path, layout(X.astype(order + dtype)), labels)
    x, y = read(source)
    assert x.tolist() == X.tolist()
    assert y.tolist() == Y.tolist()
    mixed, labels = read(source, order=BlockOrder(1, rows=1), start=3, stop=17)
    rows = [X.tolist().index(row) for row in mixed.astype(int).tolist()]
    assert len(set(rows)) == 14
    assert labels.tolist() == Y[rows].tolist()


def test_a_fortran_file_that_became_shorter_is_a_fault(tmp_path):
    source = write(tmp_path, np.asfortranarray(X.astype(np.float32)))
    path = tmp_path / "features.npy"
    path.write_bytes(path.read_bytes()[:-4])
    faults = []
    assert list(source.batches(50, on_fault="skip", faults=faults)) == []
    assert "expected 23 rows, found the end" in faults[0].message


def test_inputs_of_integers_stay_integers(tmp_path):
    for dtype in ("u2", ">i4", "i8"):
        np.save(tmp_path / "x.npy", X[:, 0].astype(dtype))
        np.save(tmp_path / "y.npy", Y)
        (x, _), *_ = NpySource(tmp_path / "x.npy", tmp_path / "y.npy", kind="inputs").batches(30)
        assert not x.is_floating_point()
        assert torch.nn.Embedding(100, 2)(x).shape == (ROWS, 3, 2)
        assert x.tolist() == X[:, 0].tolist()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.uint16])
def test_safetensors_of_integers(tmp_path, dtype):
    content = {"features": torch.from_numpy(X).to(dtype), "labels": torch.from_numpy(Y).to(dtype)}
    safetensors.torch.save_file(content, tmp_path / "a.safetensors")
    x, y = read(SafetensorsSource(tmp_path / "a.safetensors"))
    assert x.tolist() == X.tolist()
    assert y.tolist() == Y.tolist()


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_one_call_functions_read_any_byte_order(tmp_path, layout):
    x = layout(X[:, :, 0].astype(">f8"))
    write(tmp_path, x, Y.astype(">i2"))
    expected = r.resque_task(X[:, :, 0].astype(float), Y).value
    found = r.resque_task(str(tmp_path / "features.npy"), str(tmp_path / "labels.npy"))
    assert found.value == expected
    np.savez(tmp_path / "a.npz", features=x, labels=Y.astype(">u4"))
    from resque_ext.indices.resque_task import resque_task_of_file

    assert resque_task_of_file(tmp_path / "a.npz").value == expected


# --- Names with dots in a tar shard


def sample(*names):
    content = {"npy": npy_bytes(np.ones(2, np.float32)), "cls": b"1", "json": b'{"label": 2}'}
    return [(name, content.get(name.rpartition(".")[2], b"?")) for name in names]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["img.0001.npy", "img.0001.cls", "img.0002.npy", "img.0002.cls"], [1, 1]),
        (["a.b/c.d.npy", "a.b/c.d.cls", "a.b/c.e.npy", "a.b/c.e.json"], [1, 2]),
        (["v1.0.npy", "v1.0.cls", "v1.0.1.npy", "v1.0.1.cls"], [1, 1]),
        (["1.npy", "1.cls", "1.5.npy", "1.5.cls"], [1, 1]),
        (["x.features.npy", "x.cls"], [1]),
        (["x.cls", "x.features.npy"], [1]),
        (["x.cls", "x.mask.npy", "x.npy", "x.meta.json"], [1]),
        (["x.y.npy", "x.y.cls", "x.npy", "x.cls"], [1, 1]),
        (["x.NPY", "x.Cls"], [1]),
    ],
)
def test_members_with_dots_in_their_names(tmp_path, names, labels):
    content = [(n, dict(sample(n.lower()))[n.lower()]) for n in names]
    write_tar(tmp_path / "a.tar", content)
    assert read(TarSource(tmp_path / "a.tar", kind="embeddings"))[1].tolist() == labels


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x.npy", "x.cls", "x.aug.npy", "x.aug.cls"], "found another one, x.aug"),
        (["x.a.npy", "x.b.npy", "x.cls"], "expected a label (.cls or .json), found .npy"),
        (["x.npy", "x.npy", "x.cls"], "expected each member once, found two of .npy"),
        (["x.npy", "x.a.cls", "x.b.cls"], "expected a label"),
    ],
)
def test_names_that_do_not_tell_the_samples_are_faults(tmp_path, names, message):
    write_tar(tmp_path / "a.tar", sample(*names))
    faults = []
    source = TarSource(tmp_path / "a.tar", kind="embeddings")
    list(source.batches(4, on_fault="skip", faults=faults))
    assert any(message in f.message for f in faults)


# --- Damaged headers


def npy(header):
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(96)


HEADERS = [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3), ''' }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4 3), }",
    "{'descr': 'nothing', 'fortran_order': False, 'shape': (4, 3), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 3), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 3), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 10**9), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 9999999999999999999999), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (4, 3), }",
    "(" * 100,
    "\x00\xff",
    "",
]


@pytest.mark.parametrize("header", HEADERS)
def test_damaged_npy_headers(tmp_path, header):
    data = npy(header)
    (tmp_path / "features.npy").write_bytes(data)
    np.save(tmp_path / "labels.npy", Y[:4])
    with pytest.raises(ValueError, match=r"features\.npy: (features: )?expected"):
        NpySource(tmp_path)
    with pytest.raises(ValueError, match=r"features\.npy: expected a whole numeric array"):
        map_array(tmp_path / "features.npy")
    write_tar(tmp_path / "a.tar", [("x.npy", data), ("x.cls", b"1")])
    faults = []
    source = TarSource(tmp_path / "a.tar", kind="embeddings")
    assert list(source.batches(4, on_fault="skip", faults=faults)) == []
    assert ".npy: expected a numeric array" in faults[0].message


def pax(size):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf(tarfile.GNU_FORMAT)


HEADS = {
    "pax of 1 TB": pax(2**40),
    "pax of 8 EB": pax(2**62),
    "nested": pax(0) * 2000,
    "long name of 1 TB": pax(2**40)[:156] + b"L" + pax(2**40)[157:],
}


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("before", [0, 1])
def test_damaged_tar_headers(tmp_path, case, before):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, data in sample("a.npy", "a.cls") if before else ():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    head = whole.getvalue()[: whole.getvalue().rindex(b"1") // 512 * 512 + 512] if before else b""
    (tmp_path / "a.tar").write_bytes(head + HEADS[case] + bytes(1024))
    if not before:
        with pytest.raises(ValueError, match=r"a\.tar: expected an uncompressed tar archive"):
            TarSource(tmp_path / "a.tar", kind="embeddings")
        return
    faults = []
    source = TarSource(tmp_path / "a.tar", kind="embeddings")
    assert read(source, on_fault="skip", faults=faults)[1].tolist() == [1]
    assert len(faults) == 1


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, b"\xff", "1" * 10_000, "{"])
def test_json_that_cannot_be_read_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
    assert parse_json(json.dumps({"a": [1, None]})) == {"a": [1, None]}
