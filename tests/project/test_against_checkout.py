"""benchmarks/against_checkout.py, of this checkout against itself and against what is none."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.places import ROOT

import resque_ext


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout that was built in place, made of the package that is tested, wherever that is."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(Path(resque_ext.__file__).parent, folder / "resque_ext")
    shutil.copy(resque_ext.build_info()["extension"], folder / "resque_ext")
    (folder / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "against_checkout.py", folder / "benchmarks")
    return folder


@pytest.fixture
def run(checkout):
    script = str(checkout / "benchmarks" / "against_checkout.py")

    def call(*arguments):
        command = [sys.executable, script, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    return call


def test_a_checkout_against_itself(run, checkout, tmp_path):
    path = tmp_path / "out.json"
    done = run(checkout, "--ops", "pair_counts", "lloyd_step", "--repeats", "4", "--json", path)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert [row["op"] for row in found["rows"]] == ["pair_counts"] * 3 + ["lloyd_step"] * 3
    for row in found["rows"]:
        assert row["same_result"]
        assert row["repeats"] == 4
        assert sorted(row["milliseconds"]) == ["again", "other", "this"]
        for low, middle, high in (row["ratio"], row["noise"]):
            assert 0 < low <= middle <= high
    assert "results differ" not in done.stdout
    assert len(re.findall(r"^\| pair_counts \| [\d,]+ x 10 \| \d+\.\d{4} ", done.stdout, re.M)) == 3


def test_a_folder_without_a_checkout(run, tmp_path):
    done = run(tmp_path)
    assert done.returncode == 2
    assert f"OTHER_CHECKOUT: expected a checkout with resque_ext, found {tmp_path}" in done.stderr


def test_a_checkout_whose_ops_do_not_run(run, tmp_path):
    (tmp_path / "resque_ext").mkdir()
    (tmp_path / "resque_ext" / "__init__.py").touch()
    done = run(tmp_path, "--ops", "class_order")
    assert done.returncode == 1
    # An installed resque_ext may give the ops that are not there.
    assert re.search(
        f"OTHER_CHECKOUT: expected ops (of|that run in) {tmp_path}, found", done.stderr
    )
