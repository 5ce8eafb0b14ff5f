"""Files of named arrays: what is read back, and one clear line for everything else."""

import io
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from resque_ext.data.files import load_arrays
from resque_ext.errors import ArgumentError

X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 1, 0])


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.mark = str(folder / "unpickled")

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def npz(path, save=np.savez, **arrays):
    save(path, **(arrays or {"features": X, "labels": Y}))
    return path


def tensors(path, dtype=torch.bfloat16):
    content = {"features": torch.from_numpy(X).to(dtype), "labels": torch.from_numpy(Y)}
    safetensors.torch.save_file(content, path)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_reads_back(tmp_path, save):
    x, y = load_arrays(npz(tmp_path / "a.npz", save))
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_safetensors_reads_back(tmp_path, dtype):
    x, y = load_arrays(tensors(tmp_path / "a.safetensors", dtype))
    assert x.dtype == dtype
    assert torch.equal(x.float(), torch.from_numpy(X))
    assert torch.equal(y, torch.from_numpy(Y))


def test_names_and_their_order(tmp_path):
    path = npz(tmp_path / "A.NPZ.npz", a=X, b=Y, c=np.array([{}], dtype=object))
    b, a = load_arrays(str(path), ("b", "a"))  # c, which cannot be read, is not asked for
    np.testing.assert_array_equal(a, X)
    np.testing.assert_array_equal(b, Y)


def test_suffix_in_capitals(tmp_path):
    path = npz(tmp_path / "a.npz").rename(tmp_path / "a.NPZ")
    assert len(load_arrays(path)) == 2


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.npz: expected .* file, found none$"):
        load_arrays(tmp_path / "no.npz")


def directory(folder):
    (folder / "a.npz").mkdir()
    return "a.npz", "expected a file, found a directory"


def unknown_suffix(folder):
    (folder / "a.pt").write_bytes(b"x")
    return "a.pt", "expected the suffix .npz or .safetensors, found '.pt'"


def no_suffix(folder):
    (folder / "a").write_bytes(b"x")
    return "a", "expected the suffix .npz or .safetensors, found 'none'"


def empty_npz(folder):
    (folder / "a.npz").touch()
    return "a.npz", "expected an .npz archive, found an empty file"


def truncated_npz(folder):
    path = npz(folder / "a.npz")
    path.write_bytes(path.read_bytes()[:-30])
    return "a.npz", "expected an .npz archive, found a truncated zip archive"


def damaged_npz(folder):
    path = npz(folder / "a.npz")
    content = bytearray(path.read_bytes())
    content[content.find(X.tobytes()) + 20] ^= 255
    path.write_bytes(content)
    return "a.npz", "found it damaged (BadZipFile: Bad CRC-32 for file 'features.npy')"


def damaged_compressed_npz(folder):
    path = npz(folder / "a.npz", np.savez_compressed)
    content = bytearray(path.read_bytes())
    content[60:90] = b"\xff" * 30
    path.write_bytes(content)
    return "a.npz", "expected numeric arrays, found it damaged ("


def foreign_npz(folder):
    (folder / "a.npz").write_bytes(b"features,labels\n")
    return "a.npz", "expected an .npz archive, found another format that begins with b'features,'"


def npy_as_npz(folder):
    with (folder / "a.npz").open("wb") as file:
        np.save(file, X)
    return "a.npz", "expected an .npz archive, found a single .npy array"


def pickle_as_npz(folder):
    (folder / "a.npz").write_bytes(pickle.dumps(Trap(folder)))
    return "a.npz", "expected an .npz archive, found a pickle, which is never read"


def objects_in_npz(folder):
    npz(folder / "a.npz", features=np.array([Trap(folder)], dtype=object), labels=Y)
    return "a.npz", "expected numeric arrays, found Python objects in 'features'"


def torch_save_as_npz(folder):
    torch.save({"features": torch.from_numpy(X)}, folder / "a.npz")
    return "a.npz", "expected the arrays 'features', 'labels', found "


def other_member_in_npz(folder):
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        archive.writestr("features", "1 2 3")
        archive.writestr("labels", "0 1 1")
    return "a.npz", "found none at all ('features', 'labels' missing)"


def huge_npz(folder):
    """A header that declares 2^60 bytes."""
    member = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (2**57,)}
    np.lib.format.write_array_header_1_0(member, header)
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        archive.writestr("features.npy", member.getvalue() + b"x" * 64)
        archive.writestr("labels.npy", member.getvalue() + b"x" * 64)
    return "a.npz", "expected arrays that fit in memory, found larger ones"


def bad_header_in_npz(folder):
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        for name in ("features", "labels"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00\x0a\x00__import__")
    return "a.npz", "expected numeric arrays, found it damaged (ValueError: "


def array_missing(folder):
    npz(folder / "a.npz", features=X, y=Y)
    return "a.npz", "expected the arrays 'features', 'labels', found 'features', 'y' ('labels' miss"


def no_arrays(folder):
    npz(folder / "a.npz", lambda path, **_: np.savez(path))
    return "a.npz", "found none at all ('features', 'labels' missing)"


def array_missing_in_safetensors(folder):
    safetensors.torch.save_file({"x": torch.zeros(2)}, folder / "a.safetensors")
    return "a.safetensors", "expected the arrays 'features', 'labels', found 'x' ('features'"


def empty_safetensors(folder):
    (folder / "a.safetensors").touch()
    return "a.safetensors", "expected a whole safetensors file, found an empty file ("


def truncated_safetensors(folder):
    path = tensors(folder / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    return "a.safetensors", "expected a whole safetensors file, found a truncated or damaged one ("


def foreign_safetensors(folder):
    (folder / "a.safetensors").write_bytes(pickle.dumps(Trap(folder)))
    return "a.safetensors", "expected a whole safetensors file, found a pickle, which is never read"


def npz_as_safetensors(folder):
    npz(folder / "a.npz").rename(folder / "a.safetensors")
    return "a.safetensors", "expected a whole safetensors file, found a zip archive ("


BAD = [
    directory,
    unknown_suffix,
    no_suffix,
    empty_npz,
    truncated_npz,
    damaged_npz,
    damaged_compressed_npz,
    foreign_npz,
    npy_as_npz,
    pickle_as_npz,
    objects_in_npz,
    torch_save_as_npz,
    other_member_in_npz,
    huge_npz,
    bad_header_in_npz,
    array_missing,
    no_arrays,
    array_missing_in_safetensors,
    empty_safetensors,
    truncated_safetensors,
    foreign_safetensors,
    npz_as_safetensors,
]


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_file_is_one_clear_line(tmp_path, make):
    name, message = make(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_arrays(tmp_path / name)
    assert type(caught.value) is ArgumentError
    assert str(caught.value).startswith(f"{tmp_path / name}: expected ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_every_truncation_is_an_error_of_value(tmp_path, suffix):
    whole = (npz if suffix == ".npz" else tensors)(tmp_path / f"a{suffix}").read_bytes()
    path = tmp_path / f"b{suffix}"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="expected"):
            load_arrays(path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_damaged_bytes_give_arrays_or_an_error_of_value(tmp_path, suffix):
    whole = (npz if suffix == ".npz" else tensors)(tmp_path / f"a{suffix}").read_bytes()
    path = tmp_path / f"b{suffix}"
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), size=3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            arrays = load_arrays(path)
        except ValueError as error:
            assert "expected" in str(error)  # noqa: PT017
        else:
            assert len(arrays) == 2
