"""screen with a cache: a second screening reads embeddings, and its results are the same."""

import os

import numpy as np
import pytest
import torch
from helpers import screening_made as made
from torch import nn

import resque_ext
from resque_ext import shifts
from resque_ext.data.sources import BatchSource
from resque_ext.model.digest import NoDigestError, model_digest
from resque_ext.screening import Candidate, ShelfModel
from resque_ext.screening.embedding_cache import EntryWriter

ROWS = []  # of every forward pass
RAISED = []  # by the next one


class Counted(made.Small):
    def forward(self, x):
        ROWS.append(len(x))
        return super().forward(x)


class Squared(made.Small):
    """The same weights and the same text, another function."""

    def forward(self, x):
        return self.head(torch.relu(self.hidden(x.flatten(1))) ** 2)


Squared.__name__ = Squared.__qualname__ = "Counted"


class Scaled:
    def __init__(self, by):
        self.by = by

    def of(self, x):
        return self.by * x


def with_member(**members):
    return type("Counted", (Counted,), members)


MEMBERS = [
    with_member(by=property(lambda self: 1)),
    with_member(by=property(lambda self: 2)),
    with_member(by=staticmethod(lambda: 1)),
    with_member(by=staticmethod(lambda: 2)),
    with_member(by=classmethod(lambda cls: 1)),
    with_member(by=classmethod(lambda cls: 2)),
    with_member(by=[1]),
    with_member(by=[2]),
]


class Convolutional(nn.Module):
    """Embeddings [N, C, H, W], channels last, of a dtype of choice."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(1, 6, 3), nn.Linear(6, 10)
        self.to(dtype=dtype, memory_format=torch.channels_last)

    def forward(self, x):
        ROWS.append(len(x))
        x = x.to(self.conv.weight.dtype).contiguous(memory_format=torch.channels_last)
        return self.head(self.conv(x).mean((2, 3)))


@pytest.fixture
def data(tmp_path):
    """Old data and candidates in files, and one under a shift."""

    def write(name, x, y):
        np.savez(tmp_path / f"{name}.npz", inputs=x.reshape(-1, 1, 8, 8), labels=y)
        return {"path": str(tmp_path / f"{name}.npz"), "kind": "inputs"}

    old = write("old", *made.digits(900))
    news = {f"c{i}": write(f"c{i}", *made.digits(900, 0.2 * i, i)) for i in range(4)}
    news["noisy"] = Candidate(shift=shifts.make("gaussian", 0.1, 3))
    return old, news


def screen(data, model=Counted, **options):
    old, news = data
    entry = model if isinstance(model, ShelfModel) else ShelfModel(lambda: model(0))
    options = {"progress": False, "looks": made.LOOKS, "width": 0.05} | options
    ROWS.clear()
    return resque_ext.screen({"m": entry}, old, news, **options).to_dict(times=False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"anytime": False},
        {"anytime": False, "indices": ("resque_dist", "resque_task")},
        {"indices": ("resque_task",)},
        {"budget": {"samples": 1500}},
    ],
    ids=["anytime", "whole", "two", "task", "budget"],
)
def test_a_second_screening_runs_no_model_and_finds_the_same(data, tmp_path, options):
    expected = screen(data, **options)
    run = sum(ROWS)
    cache = tmp_path / "cache"
    assert screen(data, cache=cache, **options) == expected
    assert sum(ROWS) == run > 0
    assert screen(data, cache=cache, **options) == expected
    assert sum(ROWS) == 0
    if not options:
        assert {pair["stopped"] for pair in expected["pairs"]} > {"width"}
        assert run < 900 * 6


def test_a_narrower_interval_reads_on_behind_what_was_kept(data, tmp_path):
    cache = tmp_path / "cache"
    early = screen(data, cache=cache, width=0.2)
    expected = screen(data, width=0.01)
    whole = sum(ROWS)
    assert sum(p["new_samples"] for p in early["pairs"]) < sum(
        p["new_samples"] for p in expected["pairs"]
    )
    assert screen(data, cache=cache, width=0.01) == expected
    # The old data and the files go on where they ended; what a shift draws begins again.
    noisy = next(p["new_samples"] for p in expected["pairs"] if p["candidate"] == "noisy")
    kept = sum(p["new_samples"] for p in early["pairs"] if p["candidate"] != "noisy")
    assert sum(ROWS) == whole - 900 - kept
    assert sum(ROWS) >= noisy
    assert screen(data, cache=cache, width=0.01) == expected
    assert sum(ROWS) == 0
    assert screen(data, cache=cache, width=0.2) == early


def test_batches_that_come_one_behind_the_other(data, tmp_path):
    x, y = made.digits(900, 0.3, 5)

    def batches():
        for i in range(0, 900, 70):  # which fit no look
            yield torch.from_numpy(x[i : i + 70]), torch.from_numpy(y[i : i + 70])

    news = {
        str(i): BatchSource(batches, rows=rows, fingerprint={"mine": i})
        for i, rows in enumerate((900, None))
    }
    given = data[0], news
    early = screen(given, cache=tmp_path / "cache")
    expected = screen(given, width=0.008)
    for _ in range(2):
        assert screen(given, cache=tmp_path / "cache", width=0.008) == expected
    assert sum(ROWS) == 0
    read = [sum(p["new_samples"] for p in found["pairs"]) for found in (early, expected)]
    assert read[0] < read[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_embeddings_of_every_form_are_kept_exactly(data, tmp_path, dtype):
    model = ShelfModel(lambda: Convolutional(dtype), layer="conv")
    expected = screen(data, model)
    for _ in range(2):
        assert screen(data, model, cache=tmp_path / "cache") == expected
    assert sum(ROWS) == 0


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("broken")])
def test_an_interrupted_reading_leaves_no_half_of_an_entry(data, tmp_path, error):
    cache = tmp_path / "cache"
    expected = screen(data, anytime=False)

    class Interrupted(Counted):
        def forward(self, x):
            if len(ROWS) == 6:  # in the middle of the second pair
                raise RAISED[0]
            return super().forward(x)

    RAISED[:] = [error]
    Interrupted.__name__ = Interrupted.__qualname__ = "Counted"
    given = {"cache": cache, "anytime": False, "on_error": "raise"}
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        screen(data, Interrupted, **given)
    kept = entries(cache)
    assert len(kept) == 1  # the old data
    assert all(len(name) == 64 for name in kept)
    assert screen(data, **given) == expected
    assert len(entries(cache)) == 1 + 6


def test_other_weights_code_layer_data_or_batches_are_run(data, tmp_path):
    cache = tmp_path / "cache"
    screen(data, cache=cache)

    def runs(model=Counted, given=data, **options):
        expected = screen(given, model, **options)
        assert screen(given, model, cache=cache, **options) == expected
        return sum(ROWS)

    whole = 900
    assert runs() == 0
    assert runs(batch_size=100) > whole
    assert runs(seed=5) > 0
    assert runs(lambda _: Counted(1)) > whole
    assert runs(ShelfModel(lambda: Counted(0), layer="hidden")) > whole
    assert (
        runs(given=(data[0], data[1] | {"noisy": Candidate(shift=shifts.make("frost", 0.1))})) > 0
    )
    path = data[1]["c1"]["path"]
    os.utime(path, ns=(1, 1))
    assert 0 < runs() < whole  # this candidate alone
    before = len(entries(cache))
    assert screen(data, Squared, cache=cache) == screen(data, Squared)
    assert len(entries(cache)) > before  # the same weights by another function


def test_what_a_digest_of_a_model_sees():
    def changed(change):
        model = Counted(0)
        change(model)
        return model_digest(model)

    def of(name, value):
        return lambda model: setattr(model, name, value)

    digests = [
        model_digest(Counted(0)),
        model_digest(Squared(0)),
        model_digest(made.Small(0)),
        changed(of("scale", 1.0)),
        changed(of("scale", 2.0)),
        changed(of("table", torch.ones(3))),
        changed(of("table", [np.zeros(3)])),
        changed(of("call", lambda x: x + 1)),
        changed(of("call", lambda x: x + 2)),
        changed(of("call", torch.relu)),
        changed(of("call", torch.tanh)),
        changed(of("call", torch.nn.functional.gelu)),
        changed(of("call", torch.nn.functional.logsigmoid)),
        changed(of("call", Scaled(2).of)),
        changed(of("call", Scaled(3).of)),
        changed(of("scale", np.float32(2))),
        changed(of("scale", np.float32(3))),
        changed(of("config", {"a": [{"b": {"c": {"d": 1}}}]})),
        changed(of("config", {"a": [{"b": {"c": {"d": 2}}}]})),
        *(model_digest(member(0)) for member in MEMBERS),
        changed(of("forward", lambda x: x)),
        changed(lambda m: m.register_buffer("b", torch.zeros(2), persistent=False)),
        changed(lambda m: m.register_buffer("b", torch.ones(2), persistent=False)),
        changed(lambda m: m.hidden.weight.data.mul_(1.01)),
    ]
    assert len(set(digests)) == len(digests)
    assert model_digest(Counted(0).train()) == model_digest(Counted(0).eval()) == digests[0]
    assert changed(of("scale", 2.0)) == digests[4]


def test_a_relative_folder_stays_where_it_was(data, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def moves(_):
        os.chdir(tmp_path / "elsewhere")
        return Counted(0)

    screen(data, moves, cache="features")
    assert entries(tmp_path / "features")
    assert entries(tmp_path / "elsewhere") == []


def test_a_class_that_changes_within_a_process(monkeypatch):
    before = model_digest(Counted(0))
    monkeypatch.setattr(Counted, "forward", Squared.forward)
    assert model_digest(Counted(0)) != before


def hooked(model):
    model.hidden.register_forward_hook(lambda module, given, out: out + 1)
    return model


UNTOLD = {
    "forward hooks of hidden": hooked,
    "compiled code of the model": lambda m: torch.jit.trace(m.eval(), torch.zeros(2, 64)),
    "an object of torch._C.Generator": lambda m: with_attribute(m, torch.Generator()),
    "objects within objects more than 16 deep": lambda m: with_attribute(m, nested(20)),
    "a module that is no submodule": lambda m: with_attribute(m, [nn.Linear(2, 2)]),
    "a method of an object, list.append": lambda m: with_attribute(m, [].append),
    "parameters of lazy whose shape": lambda m: with_attribute(m, nn.LazyLinear(2), "lazy"),
}


def with_attribute(model, value, name="held"):
    setattr(model, name, value)
    return model


def nested(depth):
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize("what", UNTOLD)
def test_a_model_that_cannot_be_told_has_no_digest(what):
    with pytest.raises(NoDigestError, match=what.replace(".", r"\.")):
        model_digest(UNTOLD[what](Counted(0)))


def test_a_model_that_cannot_be_told_runs_each_time(data, tmp_path):
    plain = screen(data, cache=tmp_path / "cache")
    kept = len(entries(tmp_path / "cache"))
    expected = screen(data, lambda _: hooked(Counted(0)))
    assert expected != plain
    message = "cache: expected a model that can be told from others, found .* with forward hooks of"
    with pytest.warns(UserWarning, match=message):
        found = screen(data, lambda _: hooked(Counted(0)), cache=tmp_path / "cache")
    assert found == expected
    assert len(entries(tmp_path / "cache")) == kept


def test_autocast_is_another_run(data, tmp_path):
    expected = screen(data)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = screen(data, cache=tmp_path / "cache")
    assert rounded != expected
    assert screen(data, cache=tmp_path / "cache") == expected


def test_data_without_an_identity_are_named_and_run_each_time(data, tmp_path):
    x, y = made.digits(300, 0.3, 5)
    news = {
        "arrays": (x, y),
        "list": [(torch.from_numpy(x), torch.from_numpy(y))],
        "shifted": Candidate(data[1]["c1"], shift=lambda x: x / 2),
        "file": data[1]["c2"],
    }
    given = data[0], news
    expected = screen(given)
    message = "cache: expected data that a fingerprint .*, found none for arrays, list, shifted: "
    for _ in range(2):
        with pytest.warns(UserWarning, match=message):
            assert screen(given, cache=tmp_path / "cache") == expected
    unkept = [p["new_samples"] for p in expected["pairs"] if p["candidate"] != "file"]
    assert sum(ROWS) == sum(unkept)


def test_layers_are_not_kept(data, tmp_path):
    given = {"indices": ("resque_dist", "arm")}
    expected = screen(data, **given)
    with pytest.warns(UserWarning, match=r"cache: expected indices of the embedding alone, .* arm"):
        assert screen(data, cache=tmp_path / "cache", **given) == expected
    assert entries(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written_to_fails_no_pair(data, tmp_path, monkeypatch, caplog):
    expected = screen(data)

    def full(self, *batch):
        raise OSError(28, "No space left on device")

    for name in ("add", "commit"):
        with monkeypatch.context() as patched:
            patched.setattr(EntryWriter, name, full if name == "add" else lambda *_, **__: full(0))
            assert screen(data, cache=tmp_path / name) == expected
        assert entries(tmp_path / name) == []
        assert "No space left on device" in caplog.text
        caplog.clear()
    (tmp_path / "file").write_text("")
    for wrong, message in [
        (tmp_path / "file", "cache: .*file: expected a folder that can be written, found File ex"),
        (3, "cache: expected a folder or None, found int"),
    ]:
        with pytest.raises((OSError, TypeError), match=message):
            screen(data, cache=wrong, store=tmp_path / "s.sqlite")
    assert not (tmp_path / "s.sqlite").exists()


def test_a_damaged_entry_is_made_again(data, tmp_path):
    cache = tmp_path / "cache"
    expected = screen(data, cache=cache, anytime=False)
    for folder in cache.iterdir():
        content = bytearray((folder / "features.npy").read_bytes())
        content[300] ^= 1  # of the numbers: only the checksum tells
        (folder / "features.npy").write_bytes(content)
    with pytest.warns(UserWarning, match="content of its checksum, found another.*made again"):
        assert screen(data, cache=cache, anytime=False) == expected
    assert sum(ROWS) == 900 * 6
    assert screen(data, cache=cache, anytime=False) == expected
    assert sum(ROWS) == 0


def test_out_of_memory_in_a_kept_reading(data, tmp_path):
    class Hungry(Counted):
        def forward(self, x):
            if len(x) > 100:
                raise MemoryError
            return super().forward(x)

    given = {"cache": tmp_path / "cache", "batch_size": 256, "anytime": False}
    first = screen(data, Hungry, **given)
    assert {p["error"] for p in first["pairs"]} == {None}
    assert screen(data, Hungry, **given) == first
    assert sum(ROWS) == 0  # kept under the batches that fitted
    assert screen(data, Hungry, **given | {"cache": None}) == first


def test_a_wrong_label_in_what_was_kept_is_named_by_its_row(data, tmp_path):
    x, y = made.digits(600, 0.2, 3)
    y[300] = 12  # resque_task takes any labels, resque_dist those of the old data
    np.savez(tmp_path / "new.npz", inputs=x.reshape(-1, 1, 8, 8), labels=y)
    given = data[0], {"new": {"path": str(tmp_path / "new.npz"), "kind": "inputs"}}
    screen(given, indices=("resque_task",), anytime=False, cache=tmp_path / "cache")
    found = screen(given, anytime=False, cache=tmp_path / "cache")
    assert sum(ROWS) == 900  # of the old data, which resque_task does not read
    assert "12 at position 300" in found["pairs"][0]["error"]
    assert screen(given, anytime=False) == found
