"""The benchmarks of studies, from one end to the other on very little data: what they give."""

import dataclasses
import functools
import importlib.util
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import optional

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark_module(monkeypatch):
    """Imports one of the benchmarks, which are no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # for the tests after this one

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # where dataclasses look
        spec.loader.exec_module(module)
        return module

    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    tf32, benchmark = [each.allow_tf32 for each in backends], torch.backends.cudnn.benchmark
    yield load
    for each, allowed in zip(backends, tf32, strict=True):
        each.allow_tf32 = allowed
    torch.backends.cudnn.benchmark = benchmark
    sys.modules.pop("shifted_settings", None)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """JPEG files in the layout of the CIFAR-10 archive, whose brightness tells their class."""
    encode_jpeg = optional.module("torchvision.io").encode_jpeg
    path, arrays = tmp_path_factory.mktemp("data") / "made.npz", {}
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 90), ("test", 40)):
        labels = torch.arange(count) % 10
        noise = torch.randint(30, (count, 3, 32, 32), generator=generator)
        files = [encode_jpeg(x.to(torch.uint8)) for x in noise + 20 * labels.view(-1, 1, 1, 1)]
        arrays[f"{split}_jpeg"] = torch.cat(files).numpy()
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, files)])
        arrays[f"{split}_labels"] = labels.numpy().astype(np.uint8)
    np.savez(path, **arrays)
    return path


@pytest.mark.full
@pytest.mark.parametrize("name", ["resnet18", "resnet18-groupnorm", "vit"])
def test_cifar10_study(benchmark_module, pictures, tmp_path, monkeypatch, capsys, name):
    module = benchmark_module("study_cifar10")
    small = module.Size(60, slice(40, 90), 40, 50, 2, 0.5, 1, slice(-1, None), 0, small=True)
    monkeypatch.setattr(module, "SMOKE", small)
    monkeypatch.setattr(module, "LEVELS", {"contrast": (0.4, 0.9)})
    monkeypatch.setattr(module, "OWN_LEVELS", {"occlusion": (8.0, 20.0), "colour": (1.0,)})
    monkeypatch.setattr(module, "UNITS", {"occlusion": "pixels", "colour": "share"})
    few = functools.partial(module.study, indices=("resque_dist", "linear_residual"))
    monkeypatch.setattr(module, "study", few)
    out = tmp_path / "out.json"
    given = ["--data", str(pictures), "--smoke", "--model", name, "--out", str(out)]
    assert module.main(given) == 0
    found, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert (found["model"], found["smoke"]) == (name, True)
    assert found["target_accuracy"] == found["clean_accuracy"] > 0
    kinds = [(run["kind"], run["level"]) for run in found["runs"]]
    assert kinds == [("contrast", 0.9), ("occlusion", 20.0), ("colour", 1.0)]
    censored = 0
    for run in found["runs"]:
        known = run["cost"]["reached"]
        censored += not known
        assert run["predictors"]["linear_residual_reestimated"] is not None
        line = f"{run['kind']} {run['level']:g}: "
        epochs = run["cost"]["epochs"]
        cost = f"{epochs:.2f} epochs" if known else f"more than {epochs:g} (censored) epochs"
        assert line + cost in printed
    assert f"3 runs, {censored} of them censored" in printed
    assert found["correlations"]


@pytest.mark.full
def test_better_index(benchmark_module, tmp_path, monkeypatch, capsys):
    module = benchmark_module("better_index")
    name = "digits-batchnorm-judge"
    kinds = {"frost": (0.2, 0.4), "invert": (0.4,), "zoom": (0.7,)}
    setting = dataclasses.replace(module.SETTINGS[name], kinds=kinds, epochs=3, max_epochs=0.5)
    monkeypatch.setattr(module, "SETTINGS", {name: setting})
    monkeypatch.setattr(module, "BOOTSTRAPS", 20)
    monkeypatch.setattr(module, "IMAGES", 300)
    out, work = tmp_path / "out.json", tmp_path / "work"
    given = ["better_index.py", "--quick", "--work", str(work), "--json", str(out)]
    monkeypatch.setattr(sys, "argv", given)
    module.main()
    first, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert "digits, judge: [4] shifts" in printed
    for title in module.PREDICTORS.values():
        assert f"| {title} | " in printed
    rows = first["settings"][name]["rows"]
    assert [(row[0], row[1]) for row in rows] == [(k, v) for k in kinds for v in kinds[k]]
    assert all(len(row[3]) == 1 for row in rows)  # one seed
    # Broken off after one shift, it measures the others alone and comes to the same.
    for file in work.glob("*.jsonl"):
        file.write_text(file.read_text().splitlines(keepends=True)[0])
    again = mock.Mock(wraps=module.cost)
    monkeypatch.setattr(module, "cost", again)
    module.main()
    assert again.call_count == 3
    assert json.loads(out.read_text()) == first
