"""EmbeddingCache: read back as written, made again where damaged, whole or not there at all."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from helpers import sources_made
from helpers.sources_made import ROWS, in_batches, labels, values
from torch import nn

from resque_ext.data.sources import ArraySource, BlockOrder, Source
from resque_ext.screening.embedding_cache import CacheKey, EmbeddingCache, weights_digest
from resque_ext.screening.results import Fault


def key(weights="w", layer="fc:input", source=None, **options):
    return CacheKey(weights, layer, source or {"format": "x"}, **options)


@pytest.fixture
def cache(tmp_path):
    return EmbeddingCache(tmp_path / "cache")


def entry_folder(cache, k):
    return cache.folder / k.digest


def test_an_entry_is_read_back(cache):
    faults = []

    def made():
        yield from in_batches()
        faults.append(Fault("a.tar", "7.png", "broken"))  # known at the end alone

    assert cache.get(key()) is None
    entry = cache.put(key(), made(), name="mine", classes=["a", "b"], faults=faults)
    for found in (entry, cache.get(key(), "mine"), EmbeddingCache(cache.folder).get(key())):
        assert isinstance(found, Source)
        assert (found.kind, found.rows, found.classes) == ("embeddings", ROWS, ("a", "b"))
        assert found.faults == (Fault("a.tar", "7.png", "broken"),)
        case = sources_made.Case(found)
        assert case.numbers(found.batches(10)) == list(range(ROWS))
        assert len(case.numbers(found.batches(10, order=BlockOrder(1), rank=1, world_size=2))) == 27
    assert entry.name == "mine"
    np.testing.assert_array_equal(np.load(entry_folder(cache, key()) / "features.npy"), values())
    np.testing.assert_array_equal(np.load(entry_folder(cache, key()) / "labels.npy"), labels())
    assert sorted(p.name for p in cache.folder.iterdir()) == [key().digest]


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (torch.float16, "float16"),
        (torch.float32, "float32"),
        (torch.float64, "float64"),
        (torch.bfloat16, "float32"),
    ],
)
def test_dtypes_and_shapes(cache, dtype, kept):
    x = torch.arange(48).view(2, 2, 3, 4).to(dtype)
    cache.put(key(), [(x, torch.tensor([0, 1], dtype=torch.int32))])
    found = np.load(entry_folder(cache, key()) / "features.npy")
    assert found.dtype == kept
    np.testing.assert_array_equal(found, x.double().numpy())


def test_get_or_put_makes_once(cache):
    made = []

    def make():
        made.append(1)
        return in_batches()

    for _ in range(3):
        assert cache.get_or_put(key(), make, name="mine").rows == ROWS
    assert made == [1]


def test_a_key_is_all_of_what_an_entry_is_made_of(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.BatchNorm1d(2))
    source = sources_made.npy(tmp_path)
    keys = [
        CacheKey.of(model, "0", source),
        CacheKey.of(model, "1", source),
        CacheKey.of(model, "0", source, ["grayscale"]),
        CacheKey.of(model, "0", source, dtype="float16"),
        CacheKey.of(nn.Sequential(model[0], nn.GELU(), model[2]), "0", source),
    ]
    assert keys[0] == CacheKey.of(model, "0", source)
    assert keys[0].digest == CacheKey.of(weights_digest(model), "0", source).digest
    model[2].running_mean += 1  # a buffer is a part of the model
    keys.append(CacheKey.of(model, "0", source))
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-6
    keys.append(CacheKey.of(model, "0", source))
    os.utime(tmp_path / "labels.npy", ns=(1, 1))
    keys.append(CacheKey.of(model, "0", source))
    assert len({k.digest for k in keys}) == len(keys)
    with pytest.raises(ValueError, match="expected arrays to have a fingerprint, found None"):
        CacheKey.of(model, "0", ArraySource(values(), labels()))


def cut(folder):
    path = folder / "features.npy"
    path.write_bytes(path.read_bytes()[:-4])


def other_key(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["key"]["layer"] = "other"
    path.write_text(json.dumps(manifest))


def rewrite(name, data):
    def change(folder):
        (folder / name).write_bytes(data)

    change.__name__ = f"{name}_{data[:4]!r}"
    return change


def other_bytes(folder):
    """A header of the same length, of other rows."""
    path = folder / "features.npy"
    path.write_bytes(path.read_bytes().replace(b"(53, 3)", b"(3, 53)"))


DAMAGE = [
    cut,
    other_key,
    other_bytes,
    rewrite("manifest.json", b""),
    rewrite("manifest.json", b"[1]"),
    rewrite("manifest.json", b"{}"),
    rewrite("manifest.json", b"\xff\xfe"),
    rewrite("labels.npy", b"other"),
    lambda folder: (folder / "labels.npy").unlink(),
    lambda folder: (folder / "manifest.json").unlink(),
]


@pytest.mark.parametrize("change", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_or_foreign_entry_is_made_again(cache, change):
    cache.put(key(), in_batches())
    change(entry_folder(cache, key()))
    with pytest.warns(UserWarning, match=r"expected a whole entry of the cache.*made again"):
        assert cache.get(key()) is None
    with pytest.warns(UserWarning, match="made again"):
        entry = cache.get_or_put(key(), in_batches)
    assert sources_made.Case(entry).numbers(entry.batches(9)) == list(range(ROWS))
    assert sorted(p.name for p in cache.folder.iterdir()) == [key().digest]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get(key()) is not None


def test_a_changed_byte_is_found_where_asked(cache):
    cache.put(key(), in_batches())
    path = entry_folder(cache, key()) / "features.npy"
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    assert cache.get(key()) is not None
    with pytest.warns(UserWarning, match="expected the content of its checksum, found another"):
        assert EmbeddingCache(cache.folder, verify=True).get(key()) is None


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "batches: expected at least one row, found none"),
        ([(torch.ones(2, 3), torch.ones(3).long())], ValueError, "features, labels: expected one"),
        ([(torch.ones(2, 3), torch.ones(2))], TypeError, "labels: expected int32 or int64"),
        (
            [(torch.ones(2, w), torch.ones(2).long()) for w in (3, 4)],
            ValueError,
            r"features: expected rows of shape \(3,\), torch.float32, as the first",
        ),
    ],
)
def test_batches_that_are_refused_leave_nothing(cache, batches, error, message):
    with pytest.raises(error, match=message):
        cache.put(key(), batches)
    assert list(cache.folder.iterdir()) == []


def test_an_error_of_the_batches_leaves_nothing(cache):
    def fails():
        yield from in_batches()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        cache.put(key(), fails())
    assert list(cache.folder.iterdir()) == []


def test_the_limit_takes_those_asked_for_longest_ago(tmp_path):
    cache = EmbeddingCache(tmp_path)
    keys = [key(layer=str(i)) for i in range(4)]
    for i, k in enumerate(keys[:3]):
        cache.put(k, in_batches())
        os.utime(entry_folder(cache, k) / "manifest.json", ns=(i, i))
    assert cache.get(keys[0]) is not None  # the last asked for now
    size = sum(p.stat().st_size for p in entry_folder(cache, keys[0]).iterdir())
    EmbeddingCache(tmp_path, limit_bytes=int(2.5 * size)).put(keys[3], in_batches())
    assert [cache.get(k) is not None for k in keys] == [True, False, False, True]
    EmbeddingCache(tmp_path, limit_bytes=0).put(keys[1], in_batches())
    assert [p.name for p in tmp_path.iterdir()] == [keys[1].digest]  # what was just made stays
    for bad in (-1, True):
        with pytest.raises(ValueError, match="limit_bytes: expected"):
            EmbeddingCache(tmp_path, limit_bytes=bad)


WRITER = """
import sys, torch
from resque_ext.screening.embedding_cache import CacheKey, EmbeddingCache
def batches():
    for i in range(40):
        if i == 20 and sys.argv[2] == "slow":
            print("half", flush=True)
            sys.stdin.read()
        yield torch.full((10, 4), float(i)), torch.full((10,), i)
EmbeddingCache(sys.argv[1]).put(CacheKey("w", "l", {"format": "x"}), batches())
"""


def writer(folder, speed):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), speed], **pipes)


def test_a_writer_that_is_killed_leaves_no_entry(tmp_path):
    child = writer(tmp_path, "slow")
    assert child.stdout.readline() == "half\n"
    (left,) = tmp_path.iterdir()
    old = time.time() - 3_600
    os.utime(left, (old, old))
    EmbeddingCache(tmp_path)  # its writer lives: not to be touched
    assert left.exists()
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    child.stdin.close()
    child.stdout.close()
    cache = EmbeddingCache(tmp_path)
    assert not left.exists()
    k = CacheKey("w", "l", {"format": "x"})
    assert cache.get(k) is None
    assert cache.put(k, in_batches()).rows == ROWS


@pytest.mark.full
def test_two_processes_write_one_key(tmp_path):
    children = [writer(tmp_path, "slow") for _ in range(2)]
    for child in children:
        assert child.stdout.readline() == "half\n"
    for child in children:
        child.communicate("", timeout=60)
        assert child.returncode == 0
    entry = EmbeddingCache(tmp_path).get(CacheKey("w", "l", {"format": "x"}))
    assert entry.rows == 400
    assert [p.name for p in tmp_path.iterdir()] == [CacheKey("w", "l", {"format": "x"}).digest]


def test_threads_that_find_a_damaged_entry_repair_it_together(cache):
    cache.put(key(), in_batches())
    cut(entry_folder(cache, key()))
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        crew = [
            threading.Thread(target=lambda: found.append(cache.put(key(), in_batches()).rows))
            for _ in range(4)
        ]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join(30)
    assert found == [ROWS] * 4
    assert [p.name for p in cache.folder.iterdir()] == [key().digest]
