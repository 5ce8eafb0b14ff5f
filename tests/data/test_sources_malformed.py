"""Malformed inputs of every kind of source: one clear line, before anything is worked out."""

import io
import json
import math
import pickle
import re
import tarfile

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import optional, sources_made
from helpers.sources_made import in_batches, npy_bytes, png, pyarrow, values, write_tar

from resque_ext.data.sources import (
    ArraySource,
    BatchSource,
    DatasetSource,
    ImageFolderSource,
    SourceError,
    TarSource,
    as_source,
    open_source,
)
from resque_ext.data.sources.tar import expand

X, Y = values(6), np.arange(6) % 3


def save(folder, x=X, y=Y):
    np.save(folder / "features.npy", x)
    np.save(folder / "labels.npy", y)


def no_labels(folder):
    np.save(folder / "features.npy", X)
    return folder, "labels.npy: expected a .npy file, found none"


def labels_not_named(folder):
    np.save(folder / "x.npy", X)
    return folder / "x.npy", "x.npy: expected labels, the path of a .npy file, found None"


def cut(folder):
    save(folder)
    content = (folder / "features.npy").read_bytes()
    (folder / "features.npy").write_bytes(content[:-1])
    return folder, "expected 200 bytes for shape (6, 3), torch.float32, found 199 (truncated)"


def longer(folder):
    save(folder)
    with (folder / "features.npy").open("ab") as file:
        file.write(b"x")
    return folder, "found 201 (with something behind the array)"


def header_cut(folder):
    save(folder)
    (folder / "features.npy").write_bytes((folder / "features.npy").read_bytes()[:50])
    return folder, "features.npy: expected numbers, found a damaged header"


def empty_file(folder):
    save(folder)
    (folder / "features.npy").write_bytes(b"")
    return folder, "expected a single .npy array, found an empty file"


def pickled(folder):
    save(folder)
    (folder / "labels.npy").write_bytes(pickle.dumps([1, 2]))
    return folder, "labels.npy: expected a single .npy array, found a pickle, which is never read"


def objects(folder):
    save(folder, np.array([[{}]] * 6, dtype=object))
    return folder, "expected numbers, found Python objects, which need pickle"


def complex_numbers(folder):
    save(folder, X.astype(complex))
    return folder, "expected one of float16, float32, float64, int8, int16, int32, int64, uint8"


def truths(folder):
    save(folder, X > 1)
    return folder, "uint32, uint64, found numpy bool"


def one_axis(folder):
    save(folder, X[:, 0].copy())
    return folder, "expected [N, D], [N, C, H, W] or [N, T, D], found shape (6,)"


def no_axis(folder):
    save(folder, np.float32(1))
    return folder, "expected at least one axis, found a single number"


def no_width(folder):
    save(folder, X[:, :0])
    return folder, "expected [N, D], [N, C, H, W] or [N, T, D], found shape (6, 0)"


def no_rows(folder):
    save(folder, X[:0], Y[:0])
    return folder, "expected rows and as many labels, found 0 rows and 0 labels"


def other_length(folder):
    save(folder, X, Y[:5])
    return folder, "expected rows and as many labels, found 6 rows and 5 labels in "


def float_labels(folder):
    save(folder, X, Y.astype(float))
    return folder, "labels.npy: expected integer labels [N], found shape (6,), torch.float64"


def one_hot(folder):
    save(folder, X, np.eye(6, dtype=int))
    return folder, "found shape (6, 6), torch.int64 (one-hot labels: save their argmax)"


def npz_without(folder):
    np.savez(folder / "a.npz", labels=Y)
    return folder / "a.npz", "expected the arrays 'features', 'labels', found 'labels'"


def npz_lengths(folder):
    np.savez(folder / "a.npz", features=X, labels=Y[:2])
    return folder / "a.npz", "a.npz: features, labels: expected features [N, ...] and as many"


def npz_objects(folder):
    np.savez(folder / "a.npz", features=np.array([{}], dtype=object), labels=Y)
    return folder / "a.npz", "found Python objects in 'features', which need pickle"


def save_tensors(folder, **content):
    tensors = {"features": torch.from_numpy(X), "labels": torch.from_numpy(Y)} | content
    safetensors.torch.save_file(tensors, folder / "a.safetensors")
    return folder / "a.safetensors"


def tensors_without(folder):
    safetensors.torch.save_file({"x": torch.ones(2)}, folder / "a.safetensors")
    return folder / "a.safetensors", "expected the tensors 'features', 'labels', found 'x' ("


def tensors_cut(folder):
    path = save_tensors(folder)
    path.write_bytes(path.read_bytes()[:-1])
    return path, "expected a whole safetensors file, found a truncated or damaged one ("


def tensors_foreign(folder):
    (folder / "a.safetensors").write_bytes(b"PAR1")
    return folder / "a.safetensors", "expected a whole safetensors file, found another format"


def tensors_of_bool(folder):
    path = save_tensors(folder, labels=torch.ones(6, dtype=torch.bool))
    return path, "a.safetensors: labels: expected one of F16, BF16, F32"


def tensors_of_one_number(folder):
    path = save_tensors(folder, labels=torch.tensor(1))
    return path, "labels: expected at least one axis, found a single number"


def save_table(folder, **columns):
    table = sources_made.table(X, Y)
    for name, column in columns.items():
        at = table.column_names.index(name)
        table = table.remove_column(at)
        if column is not None:
            table = table.add_column(at, name, column)
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    return folder / "a.parquet"


def table_without(folder):
    return save_table(folder, labels=None), "found 'features' ('labels' missing)"


def table_of_texts(folder):
    path = save_table(folder, features=pyarrow.array([["a"]] * 6))
    return path, "features: expected lists of numbers, found list<"


def table_of_numbers(folder):
    path = save_table(folder, features=pyarrow.array(np.arange(6.0)))
    return path, "features: expected lists of numbers, found double"


def table_of_float_labels(folder):
    return save_table(folder, labels=pyarrow.array(Y / 2)), "labels: expected integers or n"


def table_cut(folder):
    path = save_table(folder)
    path.write_bytes(path.read_bytes()[:-20])
    return path, "a.parquet: expected a whole Parquet file, found "


def table_empty(folder):
    pyarrow.parquet.write_table(sources_made.table(X, Y)[:0], folder / "a.parquet")
    return folder / "a.parquet", "a.parquet: expected at least one row, found none"


def tar_missing(folder):
    write_tar(folder / "a0.tar", [])
    return folder / "a{0..1}.tar", "a1.tar: expected a tar shard, found none"


def tar_foreign(folder):
    (folder / "a.tar").write_bytes(b"not a tar " * 100)
    return folder / "a.tar", "expected an uncompressed tar archive, found another format that begi"


def tar_compressed(folder):
    with tarfile.open(folder / "a.tar", "w:gz"):
        pass
    return folder / "a.tar", "expected an uncompressed tar archive, found another format that begi"


def bad_braces(folder):
    return folder / "a{1,2}.tar", "path: expected braces as in {000..010}, found '{1,2}'"


def no_images(folder):
    optional.module("torchvision")
    return folder, "expected subfolders of images, one a class, found none"


def no_suffix(folder):
    (folder / "data").write_bytes(b"")
    return folder / "data", "expected a folder or the suffix .npy, .npz, .safetensors, .parquet, .t"


BAD = [
    no_labels,
    labels_not_named,
    cut,
    longer,
    header_cut,
    empty_file,
    pickled,
    objects,
    complex_numbers,
    truths,
    one_axis,
    no_axis,
    no_width,
    no_rows,
    other_length,
    float_labels,
    one_hot,
    npz_without,
    npz_lengths,
    npz_objects,
    tensors_without,
    tensors_cut,
    tensors_foreign,
    tensors_of_bool,
    tensors_of_one_number,
    table_without,
    table_of_texts,
    table_of_numbers,
    table_of_float_labels,
    table_cut,
    table_empty,
    tar_missing,
    tar_foreign,
    tar_compressed,
    bad_braces,
    no_images,
    no_suffix,
]


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_a_malformed_input_is_one_clear_line(tmp_path, make):
    path, message = make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as caught:
        open_source(str(path))
    assert "\n" not in str(caught.value)
    assert ": expected " in str(caught.value)


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "parquet", "tar"])
@pytest.mark.parametrize("what", ["none", "a folder"])
def test_a_path_that_is_no_file(tmp_path, suffix, what):
    path = tmp_path / f"a.{suffix}"
    if what == "a folder":
        path.mkdir()
    spec = {"path": str(path), "format": suffix}
    if suffix == "npy":
        spec["labels"] = str(path)
    with pytest.raises((FileNotFoundError, ValueError), match=r"expected (a|no) .*found"):
        open_source(spec)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (5, TypeError, "source: expected a path or a mapping, found int"),
        ({}, ValueError, "source: expected the key path, found no key at all"),
        ({"path": 5}, ValueError, "source: path: expected a text, found 5"),
        ({"path": "a.xyz"}, FileNotFoundError, "a.xyz: expected a file or a folder, found none"),
        ({"path": "a", "format": "csv"}, ValueError, "source: format: expected one of npy, npz"),
        ({"path": "a.npy", "color": 1}, ValueError, "source: expected the keys path, format, name"),
        ({"path": "a.npy", "labels": 1}, ValueError, "source: labels: expected a text, found 1"),
        ({"path": "a.npy", "kind": "x"}, ValueError, "source: kind: expected one of"),
        ({"path": "a.tar", "rows": "3"}, ValueError, "source: rows: expected a number of rows"),
        ({"path": [], "format": "tar"}, ValueError, "source: path: expected a text or a list"),
        ({"path": "a", "dataset": "b:c"}, ValueError, "source: expected the keys kind, transforms"),
        ({"format": "dataset"}, ValueError, "source: expected the key dataset, found format"),
        ({"dataset": "nothing"}, ValueError, "dataset: expected module:callable, found 'nothing'"),
        (
            {"path": "a.npz", "transforms": "resize"},
            ValueError,
            "transforms: expected a list of te",
        ),
    ],
)
def test_specifications_that_are_refused(spec, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)


def test_specifications_that_are_taken(tmp_path, monkeypatch):
    for kind in ("npy", "npz", "parquet", "tar_images", "images"):
        (tmp_path / kind).mkdir()
        sources_made.make(kind, tmp_path / kind)
    specs = {
        "npy": "npy",
        "npz": {"path": "npz/a.npz", "name": "mine"},
        "two": {"path": "npy/features.npy", "labels": "npy/labels.npy"},
        "parquet": {"path": "parquet/a.parquet", "format": "parquet"},
        "tar": {"path": "tar_images/data-{00..02}.tar", "rows": 53},
        "tars": {"path": ["tar_images/data-00.tar", "tar_images/data-{01..02}.tar"]},
        "images": {"path": "images", "transforms": ['resize={"size": 2}']},
    }
    for name, spec in specs.items():
        source = open_source(spec, folder=tmp_path)
        assert sum(len(y) for _, y in source.batches(10)) == 53, name
    assert open_source(specs["npz"], tmp_path).name == "mine"
    assert open_source(specs["tar"], tmp_path).name == "tar_images/data-{00..02}.tar"
    (tmp_path / "given_here.py").write_text(
        "import torch\ndef data(): return [(torch.ones(2, 3), torch.zeros(2).long())]\n"
    )
    monkeypatch.chdir(tmp_path)
    source = open_source({"dataset": "given_here:data", "kind": "embeddings"})
    assert (source.name, source.kind) == ("given_here:data", "embeddings")
    assert len(next(source.batches(5))[1]) == 2


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ((X, Y), ArraySource),
        (sources_made.Pictures(), DatasetSource),
        (in_batches(), BatchSource),
        (in_batches, BatchSource),
        (torch.utils.data.DataLoader(sources_made.Pictures()), BatchSource),
    ],
)
def test_what_a_caller_has_becomes_a_source(data, kind):
    source = as_source(data, "mine")
    assert type(source) is kind
    assert source.name == "mine"
    assert as_source(source) is source


def test_what_is_no_source_is_refused():
    with pytest.raises(TypeError, match="data: expected a source, a path, a mapping, arrays"):
        as_source(5)
    with pytest.raises(ValueError, match="columns: expected the names of two of 'id', 'embedding'"):
        as_source(sources_made.Columns())


def test_braces():
    assert expand("a-{08..11}.tar") == [f"a-{n}.tar" for n in ("08", "09", "10", "11")]
    assert expand("{0..1}{0..1}") == ["00", "01", "10", "11"]
    for bad in ("{5..1}", "{a..b}", "{}", "a{", "}", "{0..9999999}", "{-1..3}"):
        with pytest.raises(ValueError, match="path: expected braces"):
            expand(bad)


def member(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (("../0.png", b"1"), "../0.png: expected a name inside of the archive, found a way out"),
        (("/etc/0.png", b"1"), "/etc/0.png: expected a name inside of the archive"),
        (("a/../../0.cls", b"1"), "a/../../0.cls: expected a name inside of the archive"),
        (member("0.png", tarfile.SYMTYPE, "/etc/passwd"), "expected a regular file, found a link"),
        (member("0.png", tarfile.LNKTYPE, "a.png"), "expected a regular file, found a link"),
        (member("0.png", tarfile.FIFOTYPE), "expected a regular file, found another kind of"),
        (member("0.png", tarfile.CHRTYPE), "expected a regular file, found another kind of"),
        (member("0.png", tarfile.GNUTYPE_SPARSE), "expected a regular file, found another kind"),
        (("2.cls", b"1"), "expected one image, found .cls"),
        (("2.png", b"1"), "expected a label (.cls or .json), found .png"),
        (("1.cls", b"1"), "1: expected each member once, found two of .cls"),
        (("1.jpg", b"1"), "1: expected one image, found .png, .cls, .jpg"),
    ],
)
def test_members_that_are_refused(tmp_path, bad, message):
    path = write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", b"0"), bad])
    with pytest.raises(SourceError, match=re.escape(message)):
        list(TarSource(path).batches(4))
    if isinstance(bad, tuple) and bad[0].startswith("1."):
        return
    faults = []
    batches = list(TarSource(path).batches(4, on_fault="skip", faults=faults))
    assert [y.tolist() for _, y in batches] == [[0]]
    assert [f.source for f in faults] == [str(path)]
    assert not any(p.name != "a.tar" for p in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("suffix", "data", "message"),
    [
        ("cls", b"one", ".cls: expected an integer, found 'one'"),
        ("cls", b"9" * 30, ".cls: expected an integer"),
        ("json", b"{", ".json: expected JSON, found"),
        ("json", b"[" * 100_000, ".json: expected JSON, found"),
        ("json", b"{}", ".json: expected an integer 'label', found None"),
        ("json", json.dumps({"label": True}).encode(), "expected an integer 'label', found True"),
    ],
)
def test_labels_of_members_that_are_refused(tmp_path, suffix, data, message):
    path = write_tar(tmp_path / "a.tar", [("1.png", png(1)), (f"1.{suffix}", data)])
    with pytest.raises(SourceError, match=re.escape(message)):
        list(TarSource(path).batches(4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy_bytes(np.array([{}], dtype=object)), "expected a numeric array, found it damaged"),
        (npy_bytes(X[0])[:-2], "expected a numeric array, found it damaged"),
        (npy_bytes(np.arange(3) > 1), "expected float32, float64, float16, bfloat16 or integers"),
        (npy_bytes(np.float32(3)), "expected [N, D], [N, C, H, W] or [N, T, D]"),
    ],
)
def test_features_of_members_that_are_refused(tmp_path, data, message):
    path = write_tar(tmp_path / "a.tar", [("1.npy", data), ("1.cls", b"0")])
    with pytest.raises(SourceError, match=re.escape(message)):
        list(TarSource(path, kind="embeddings").batches(4))


def npy_of(shape):
    """A .npy file whose header says `shape`, with room for 4 numbers."""
    out = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue() + bytes(16)


@pytest.mark.parametrize("shape", [(10**15,), (2**62, 4), (3,), (5,)])
def test_a_member_is_as_long_as_its_header_says(tmp_path, shape):
    members = [("1.npy", npy_of(shape)), ("1.cls", b"0"), ("2.npy", npy_of((4,))), ("2.cls", b"1")]
    source = TarSource(write_tar(tmp_path / "a.tar", members), kind="embeddings")
    faults = []
    batches = list(source.batches(4, on_fault="skip", faults=faults))
    assert [y.tolist() for _, y in batches] == [[1]]
    wanted = 4 * math.prod(shape)
    expected = f"found it damaged: expected {wanted} bytes of shape {shape}, found 16"
    assert [f.message for f in faults] == [f".npy: expected a numeric array, {expected}"]


@pytest.mark.parametrize("size", [10**9, 9 * 10**12, 2**63 - 1, 10**23, -5])
def test_a_member_that_claims_another_size_is_damage(tmp_path, size):
    """As a damaged header says it; here in an extended one, which has room for any number."""
    path = write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", b"0")])
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("2.png")
        info.size, info.pax_headers = len(png(1)), {"size": str(size)}
        archive.addfile(info, io.BytesIO(png(1)))
    faults = []
    batches = list(TarSource(path).batches(4, on_fault="skip", faults=faults))
    assert [y.tolist() for _, y in batches] == [[0]]
    assert {fault.member for fault in faults} == {None, "2"}
    found = next(f.message for f in faults if f.member == "2")
    assert found.startswith(f"expected {size} bytes at ")


def test_a_shard_that_goes_while_it_is_read(tmp_path):
    for i in "01":
        write_tar(tmp_path / f"{i}.tar", [("1.png", png(1)), ("1.cls", i.encode())])
    source, faults = TarSource([tmp_path / "0.tar", tmp_path / "1.tar"]), []
    walk = source._walk

    def gone(shard):
        yield from walk(shard)
        if shard == 1:
            (tmp_path / "1.tar").unlink()

    source._walk = gone
    batches = list(source.batches(4, on_fault="skip", faults=faults))
    assert [y.tolist() for _, y in batches] == [[0]]
    assert [(f.source, f.member) for f in faults] == [(str(tmp_path / "1.tar"), None)]
    assert "expected a tar shard, found" in faults[0].message


def test_a_tar_without_samples(tmp_path):
    optional.module("torchvision")
    with pytest.raises(ValueError, match="expected samples in the shards, found none"):
        list(TarSource(write_tar(tmp_path / "a.tar", [])).batches(4))


class Items:
    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 2

    def __getitem__(self, row):
        if isinstance(self.item, Exception):
            raise self.item
        return self.item


@pytest.mark.parametrize(
    ("item", "columns", "error", "message"),
    [
        (5, None, TypeError, "row 0: expected a pair (inputs, label), found int"),
        ({"a": 1}, None, TypeError, "found dict of ['a'] (columns= names two of a mapping)"),
        ({"a": 1}, ("a", "b"), ValueError, "expected the columns ['a', 'b'], found ['a']"),
        ((X[0], "cat"), None, SourceError, "row 0: expected an integer label, found 'cat'"),
        ((X[0], True), None, SourceError, "row 0: expected an integer label, found True"),
        (("image", 1), None, SourceError, "expected a torch.Tensor or numpy.ndarray, found str"),
        (RuntimeError("my own"), None, RuntimeError, "my own"),
    ],
)
def test_items_that_are_refused(item, columns, error, message):
    with pytest.raises(error, match=re.escape(message)):
        list(DatasetSource(Items(item), columns=columns).batches(2))


def test_datasets_that_are_refused():
    with pytest.raises(TypeError, match="expected a dataset with __len__ and __getitem__"):
        DatasetSource(iter([]))
    with pytest.raises(ValueError, match="expected at least one row, found none"):
        DatasetSource([])
    with pytest.raises(ValueError, match=r"columns: expected two of .*, found 'image'"):
        DatasetSource(sources_made.Columns(), columns=("image", "label"))


def test_images_of_several_sizes(tmp_path):
    (tmp_path / "a").mkdir()
    for size in (3, 4):
        sources_made.image(9, (size, 3)).save(tmp_path / "a" / f"{size}.png")
    with pytest.raises(ValueError, match="expected rows or images of one size"):
        list(ImageFolderSource(tmp_path).batches(2))
    made = [(torch.ones(1, size), torch.zeros(1).long()) for size in (3, 4)]
    with pytest.raises(ValueError, match="inputs: expected rows of one shape and dtype"):
        list(BatchSource(made).batches(2))
