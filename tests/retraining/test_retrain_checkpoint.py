"""retrain's checkpoints: a run that goes on is the run that was never stopped, to the bit."""

import concurrent.futures
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from helpers.places import environment
from helpers.training_oracle import batches, loader, network
from torch import nn

from resque_ext import shifts
from resque_ext.retraining import CheckpointError, retrain
from resque_ext.retraining import checkpoint as files


class Stop(Exception):
    pass


class Breaks(nn.Module):
    """Passes its input on, and raises at one training step; a class attribute counts down."""

    left = math.inf

    def forward(self, x):
        if self.training:
            Breaks.left -= 1
            if Breaks.left < 0:
                raise Stop
        return x


def model():
    return nn.Sequential(network(), Breaks())


def warm_up(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=200)


RECIPES = {
    "list": {},
    "shuffled": {"train": loader, "checks_per_epoch": 3},
    "own generator": {"train": lambda: loader(generator=torch.Generator())},
    "sgd and schedule": {
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "scheduler": warm_up,
    },
    "schedule an epoch": {
        "scheduler": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 9),
        "scheduler_interval": "epoch",
    },
    "noise from all generators": {
        "train": loader,
        "augment": lambda x: x + torch.randn_like(x) * float(np.random.rand()),  # noqa: NPY002
    },
    "float16": {"autocast": torch.float16},
    "plateau": {"patience": 3},
}


def run(path, train=batches, left=math.inf, epochs=3, seconds=0, **options):
    Breaks.left = left
    return retrain(
        model(),
        train(),
        batches(seed=1),
        1.0,
        epochs,
        **{"meter": None, "checkpoint": path, "checkpoint_seconds": seconds} | options,
        return_model=True,
    )


@pytest.mark.parametrize("name", RECIPES)
def test_goes_on_to_the_same_result(name, tmp_path):
    recipe = RECIPES[name]
    expected, trained = run(None, **recipe)
    path = tmp_path / "run"
    for stop in (3, 5, 2):  # in the middle of an epoch, once more, and again
        with pytest.raises(Stop):
            run(path, left=stop, **recipe)
        assert path.exists()
    cost, again = run(path, **recipe)
    assert cost.resumed == 3
    assert cost.without_times() == expected.without_times()
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_seeded_shift_goes_on_where_it_was(tmp_path):
    def images():
        x = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(1))
        return list(zip(x.split(8), (torch.arange(24) % 3).split(8), strict=True))

    def go(path, left=math.inf):
        Breaks.left = left
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), Breaks())
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(0.01)
        shift = shifts.make("gaussian", 0.3, seed=4)
        options = {"meter": None, "checkpoint": path, "checkpoint_seconds": 0}
        return retrain(net, images(), images(), 1.0, 2, transform=shift, **options)

    expected = go(None)
    with pytest.raises(Stop):
        go(tmp_path / "run", left=5)
    assert go(tmp_path / "run").without_times() == expected.without_times()


def test_a_finished_run_is_given_back(tmp_path):
    path = tmp_path / "run"
    cost, trained = run(path)
    stamp = path.read_bytes()
    again, same = run(path, left=0)  # not a step is taken
    assert again == cost
    assert torch.equal(trained[0][0].weight, same[0][0].weight)
    assert path.read_bytes() == stamp


def test_times_and_energy_add_up(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(Stop) as caught:
        run(path, left=5, meter=None)
    before = caught.value.record
    cost, _ = run(path)
    assert cost.train_seconds > before.train_seconds / 2
    assert cost.energy["training"].measured.value is None
    assert "no energy meter" in cost.energy["training"].measured.reason


def test_saved_no_more_often_than_asked(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(files, "save", lambda path, state: saved.append(path))
    run(tmp_path / "run", seconds=1e9)
    assert len(saved) == 1  # the end


def test_survives_being_killed_at_any_moment(tmp_path):
    """SIGKILL while it writes without pause: what lies there is whole, and goes on."""
    code = textwrap.dedent(
        """
        import sys
        from helpers.training_oracle import batches, network
        from resque_ext.retraining import retrain
        retrain(network(), batches(), batches(seed=1), 1.0, 10**6, meter=None,
                checkpoint=sys.argv[1], checkpoint_seconds=0)
        """
    )
    path = tmp_path / "run"
    command = [sys.executable, "-c", code, str(path)]
    process = subprocess.Popen(command, env=environment())
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    steps = files.load(path)["history"]["steps"]
    assert steps > 0
    reads = itertools.count()

    def adapter(batch):
        if next(reads) == 30:
            raise Stop
        return batch

    options = {"meter": None, "checkpoint": path, "checkpoint_seconds": 0, "batch_adapter": adapter}
    with pytest.raises(Stop) as caught:
        retrain(network(), batches(), batches(seed=1), 1.0, 10**6, **options)
    assert caught.value.record.steps > steps
    assert caught.value.record.resumed == 1


def test_there_is_always_a_whole_file(tmp_path):
    path = tmp_path / "run"
    state = {"tensor": torch.zeros(50_000), "n": 0}
    files.save(path, state)
    done, seen = threading.Event(), []

    def read():
        while not done.is_set():
            seen.append(files.load(path)["n"])

    with concurrent.futures.ThreadPoolExecutor() as pool:
        reader = pool.submit(read)
        for n in range(1, 60):
            files.save(path, state | {"n": n})
        done.set()
        reader.result()  # raises what reading raised
    assert seen == sorted(seen)
    assert len(set(seen)) > 3


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run"
    files.save(path, {"a": 1})

    def full(_tensors, target, **_):
        Path(target).write_bytes(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        files.save(path, {"a": 2})
    assert files.load(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["run"]  # noqa: PTH208


def test_all_plain_values_come_back(tmp_path):
    state = {
        "numbers": [1, 2.5, -0.0, math.inf, 2**80, True, None, "text", np.float64(0.1)],
        "tuple": (1, (2, [3])),
        5: {("a", 1): "tuple key"},
        "tensors": {"x": torch.arange(6).view(2, 3).t(), "y": torch.tensor(1.5, dtype=torch.half)},
        "array": np.arange(4, dtype=np.uint32),
        "empty": [{}, [], ()],
    }
    files.save(tmp_path / "file", state)
    back = files.load(tmp_path / "file")
    assert torch.equal(back["tensors"]["x"], state["tensors"]["x"])
    assert back["tensors"]["y"].dtype == torch.half
    assert np.array_equal(back["array"], state["array"])
    assert back["array"].dtype == np.uint32
    for name in ("numbers", "tuple", 5, "empty"):
        assert back[name] == state[name]
    assert math.copysign(1, back["numbers"][2]) == -1
    with pytest.raises(
        TypeError, match=r"expected tensors and plain values, found object in state.a"
    ):
        files.save(tmp_path / "file", {"a": [object()]})


def refuses(message, path, **options):
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(CheckpointError, match=message) as caught:
        run(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not path.is_file() or path.read_bytes() == before


def test_unreadable_and_foreign_files(tmp_path):
    path = tmp_path / "run"
    run(path)
    whole = path.read_bytes()
    for content in (b"", b"\x80\x04pickle", b"PK\x03\x04", whole[:100], whole[:-10], b"x" * 500):
        path.write_bytes(content)
        refuses("^checkpoint: expected one that retrain wrote, found .* unreadable", path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    refuses("^checkpoint: expected the format", path)
    with safetensors.safe_open(path, "pt") as file:
        assert file.keys() == ["a"]
    refuses("^checkpoint: expected a file, found a directory", tmp_path)
    header = {"format": files.FORMAT, "state": json.dumps({"unknown": 3})}
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata=header)
    refuses("^checkpoint: expected one that retrain wrote", path)
    files.save(path, {"history": {}})
    refuses("^checkpoint: expected one that retrain wrote, found .* without 'identity'", path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 1}, "seed 0 instead of 1"),
        ({"epochs": 4}, "max_epochs 3.0 instead of 4.0"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}, "optimizer 'Adam' instead of 'SGD'"),
        ({"checks_per_epoch": 2}, "checks_per_epoch 1 instead of 2"),
        ({"train": lambda: batches(samples=40)}, "training data"),
    ],
)
def test_checkpoints_of_another_run(change, what, tmp_path):
    run(tmp_path / "run")
    refuses(
        f"^checkpoint: expected one of this run, found .* with {what}", tmp_path / "run", **change
    )


def test_checkpoint_of_another_model(tmp_path):
    path = tmp_path / "run"
    run(path)
    other = network(seed=1)
    with pytest.raises(CheckpointError, match="parameters"):
        retrain(other, batches(), batches(seed=1), 1.0, 3, meter=None, checkpoint=path)
    same_names = model()
    with torch.no_grad():
        same_names[0][4].weight[0, 0] += 1e-6
    message = "began with this model, found .* another 0.4.weight"
    with pytest.raises(CheckpointError, match=message):
        retrain(same_names, batches(), batches(seed=1), 1.0, 3, meter=None, checkpoint=path)
