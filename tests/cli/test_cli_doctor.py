"""`resque-ext doctor`: what it finds, of this build and of others."""

import re
from pathlib import Path

import pytest
import torch
from helpers.cli_made import strict

import resque_ext
from resque_ext import cli
from resque_ext.tools import doctor


@pytest.fixture(autouse=True)
def _sources_as_built(monkeypatch):
    # While the sources are worked on, the extension may lag behind: not what is tested here.
    monkeypatch.setattr(doctor, "checkout_digest", lambda package: None)


def test_doctor(run):
    status, out, err = run("doctor", "--json")
    found = strict(out)
    assert (status, err) == (0, "")
    assert found["versions"]["torch"] == torch.__version__
    assert found["build"]["version"] == resque_ext.__version__
    assert [d["kernels"] for d in found["devices"]] == ["work"] * len(found["devices"])
    assert found["problems"] == []
    status, out, err = run("doctor")
    assert (status, err) == (0, "")
    assert "No problems." in out
    assert max(map(len, out.splitlines())) <= cli.PLAIN_WIDTH


def test_doctor_knows_the_extras_of_the_package():
    tomllib = pytest.importorskip("tomllib")
    path = Path(__file__).parents[2] / "pyproject.toml"
    if not path.is_file():
        pytest.skip("not in a checkout")
    extras = tomllib.loads(path.read_text())["project"]["optional-dependencies"]
    for_users = {k: v for k, v in extras.items() if k not in ("docs", "test", "test-all", "dev")}
    names = {k: tuple(re.split(r"[<>=\[ ]", n)[0] for n in v) for k, v in for_users.items()}
    assert names == doctor.EXTRAS


def test_doctor_says_how_to_get_an_extra(run, monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda name: None)
    found = strict(run("doctor", "--json")[1])
    assert {"what": "pyarrow", "how": "pip install 'resque-ext[files]'"} in found["missing"]
    assert "resque-ext[energy]" in run("doctor")[1]


def test_doctor_without_an_extension(run, monkeypatch):
    build = {"version": "1", "extension": None, "missing": "it was never built; build it"}
    monkeypatch.setattr(doctor, "build_info", lambda: build | {"backend": "native"})
    status, out, err = run("doctor", "--json")
    assert (status, err) == (1, "")
    assert strict(out)["problems"] == [{"what": "it was never built", "how": "build it"}]
    assert run("doctor")[0] == 1


def test_doctor_tells_an_extension_of_other_sources(run, monkeypatch):
    def broken(*_):
        raise TypeError("incompatible function arguments")

    monkeypatch.setattr(doctor, "checkout_digest", lambda package: "0123")
    monkeypatch.setattr(doctor.ops, "class_moments", broken)
    status, out, err = run("doctor", "--json")
    assert (status, err) == (1, "")
    found = strict(out)
    assert found["devices"][0]["kernels"] == "failed"
    assert "built of other C++ sources" in found["problems"][0]["what"]
    assert "class_moments on cpu: incompatible" in found["problems"][1]["what"]


def test_doctor_without_kernels_for_the_gpu(run, monkeypatch):
    gpu = {"device": "cuda:0", "name": "G", "capability": "7.5", "memory_bytes": 1}
    devices = doctor.devices()[:1]
    build = resque_ext.build_info()
    monkeypatch.setattr(doctor, "devices", lambda: [dict(d) for d in [*devices, gpu]])
    monkeypatch.setattr(doctor, "build_info", lambda: build | {"cuda": None})
    status, out, _ = run("doctor", "--json")
    assert status == 1
    assert [p["what"] for p in strict(out)["problems"]] == ["no CUDA kernels for cuda:0"]
    built = {"toolkit": "12.8", "architectures": ["80", "90"]}
    monkeypatch.setattr(doctor, "build_info", lambda: build | {"cuda": built})
    status, out, _ = run("doctor", "--json")
    assert status == 1
    problem = strict(out)["problems"][0]
    assert problem["what"] == "CUDA kernels for cuda:0 (G, 7.5)"
    assert "RESQUE_CUDA_ARCHS=80,90,75" in problem["how"]


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (["80", "90"], "8.0", True),
        (["80", "90"], "8.9", True),  # machine code of its own major version
        (["80", "90"], "9.0", True),
        (["80", "90"], "12.0", True),  # intermediate code of the last
        (["80", "90"], "7.5", False),
        (["86", "90"], "8.0", False),
        (["80", "90a"], "9.0", True),
        (["80", "90a"], "10.0", False),
        (["75-virtual"], "7.5", True),
        (["75-virtual"], "12.0", True),
        (["75-virtual"], "7.0", False),
        (["75-virtual", "80"], "7.5", True),  # intermediate code of one that is not the last
        (["75-virtual", "90"], "8.0", True),
        (["80", "90-virtual"], "8.6", True),
        (["80-virtual", "90a"], "10.0", True),
    ],
)
def test_covers(architectures, capability, expected):
    assert doctor.covers(architectures, capability) is expected


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (["75-virtual"], "7.5", False),
        (["75-virtual", "80"], "8.6", True),
        (["80", "90"], "12.0", False),
        (["80", "90-virtual"], "9.0", False),
        (["86"], "8.0", False),
        (["90a"], "9.0", True),
    ],
)
def test_covers_with_machine_code(architectures, capability, expected):
    assert doctor.covers(architectures, capability, compiled=True) is expected


def test_doctor_where_the_driver_compiles(run, monkeypatch):
    """Kernels that work, but only after the driver's own compiler: nothing wrong, worth a word."""
    gpu = {"device": "cuda:0", "name": "G", "capability": "9.0", "memory_bytes": 1}
    devices = doctor.devices()[:1]
    build = resque_ext.build_info()
    monkeypatch.setattr(doctor, "devices", lambda: [dict(d) for d in [*devices, gpu]])
    monkeypatch.setattr(doctor, "_check", lambda device, build: ("work", None))
    for architectures, expected in ((["75-virtual"], 1), (["80", "90"], 0)):
        built = build | {"cuda": {"toolkit": "13.0", "architectures": architectures}}
        monkeypatch.setattr(doctor, "build_info", lambda built=built: built)
        status, out, _ = run("doctor", "--json")
        assert status == 0
        found = [m for m in strict(out)["missing"] if m["what"].startswith("machine code")]
        assert len(found) == expected
        for entry in found:
            assert entry["what"].startswith("machine code for cuda:0 (G, 9.0): the driver compiles")
            assert entry["how"].endswith("RESQUE_CUDA_ARCHS=90")
