"""`resque-ext task`: the index of a file, as a table and as JSON, and what is refused."""

import json

import numpy as np
import pytest

from resque_ext import cli, resque_task


def run(capsys, *arguments):
    status = cli.main(["task", *map(str, arguments)])
    return status, *capsys.readouterr()


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(150) % 3
    features = (rng.normal(size=(150, 6)) + labels[:, None]).astype(np.float32)
    np.savez(tmp_path / "both.npz", features=features, labels=labels)
    np.save(tmp_path / "x.npy", features)
    np.save(tmp_path / "y.npy", labels)
    return tmp_path, features, labels


def test_a_file_of_both(data, capsys):
    folder, features, labels = data
    expected = resque_task(features, labels, baselines=True)
    status, out, err = run(capsys, folder / "both.npz", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["value"] == expected.value
    assert found["std_error"] == expected.std_error
    assert found["linear_probe_error"] == expected.linear_probe_error
    status, out, err = run(capsys, folder / "both.npz")
    assert (status, err) == (0, "")
    assert f"{expected.value:.4f}" in out
    assert f"{expected.nearest_class_mean_error:.1%}" in out


def test_a_mapped_file_and_options(data, capsys):
    folder, features, labels = data
    options = ("--init", "k-means++", "--num-classes", 4, "--seed", 3, "--no-baselines", "--json")
    status, out, _ = run(capsys, folder / "x.npy", "--labels", folder / "y.npy", *options)
    assert status == 0
    found, expected = json.loads(out), resque_task(features, labels, 4, "k-means++", seed=3)
    assert found["value"] == expected.value
    assert np.shape(found["table"]) == (3, 4)
    assert found["linear_probe_error"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.npz",), "none.npz: expected"),
        (("both.npz", "--init", "x"), "init: expected one of"),
        (("both.npz", "--num-classes", "2"), "num_classes: expected 3"),
        (("x.npy",), "labels: expected a .npy file"),
        (("both.npz", "--labels", "y.npy"), "labels: expected a .npy file"),
        (("both.npz", "--max-iter", "0"), "max_iter: expected 1 <="),
    ],
)
def test_refused(data, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(data[0])
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
