"""CPU, memory and carbon intensity by CodeCarbon: measurements and guesses apart, and quiet."""

import gc
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import optional
from helpers.fake_nvml import Clock

from resque_ext.energy import EnergyMeter, EnergyWarning, once
from resque_ext.energy import codecarbon_source as source
from resque_ext.energy.codecarbon_source import MISSING, CodeCarbon, grid_intensity
from resque_ext.energy.sources import Nothing, Source


@pytest.fixture(autouse=True)
def _own_locks(monkeypatch, tmp_path):
    monkeypatch.setattr(once, "folder", lambda: tmp_path)


class FakeTracker:
    """In place of CodeCarbon's: 60 W of processor and 10 W of memory, in kWh since its start."""

    mode, design_power = "intel_rapl", None
    clock = Clock()
    fails = None
    running = 0

    def __init__(self, tracking):
        if self.fails == "start":
            raise source.EnergyError("no start")
        self.began = self.clock.now
        FakeTracker.running += 1

    def read(self):
        if self.fails == "read":
            raise OSError("unreadable")
        seconds = self.clock.now - self.began
        return SimpleNamespace(cpu_energy=60 * seconds / 3.6e6, ram_energy=10 * seconds / 3.6e6)

    def cpu_mode(self):
        return self.mode, self.design_power

    def stop(self):
        FakeTracker.running -= 1


@pytest.fixture
def tracker(monkeypatch):
    monkeypatch.setattr(source, "_Tracker", FakeTracker)
    for name, value in (("mode", "intel_rapl"), ("design_power", None), ("fails", None)):
        monkeypatch.setattr(FakeTracker, name, value)
    monkeypatch.setattr(FakeTracker, "running", 0)
    return FakeTracker


def figures(measurement):
    return {(f.part, f.source): f for f in measurement.figures}


def test_rapl_is_a_measurement_and_memory_a_guess(tracker):
    meter = EnergyMeter((), clock=tracker.clock, carbon_intensity=500)
    tracker.clock.sleep(100)
    with meter.window("a") as metered:
        tracker.clock.sleep(20)
        with meter.window("b") as inner:
            tracker.clock.sleep(30)
    found = figures(metered.measurement)
    assert set(found) == {("cpu", "rapl"), ("ram", "none"), ("ram", "estimate")}
    assert found["cpu", "rapl"].value == pytest.approx(3000)
    assert found["cpu", "rapl"].resolution == pytest.approx(6)
    assert found["ram", "none"].value is None
    assert found["ram", "estimate"].value == pytest.approx(500)
    assert found["ram", "estimate"].resolution is None
    assert figures(inner.measurement)["cpu", "rapl"].value == pytest.approx(1800)
    assert metered.measurement.measured.value == pytest.approx(3000)
    assert metered.measurement.estimated.value == pytest.approx(3500)
    assert metered.measurement.emissions.value == pytest.approx(3000 / 3.6e6 * 0.5)
    assert tracker.running == 1
    meter.close()
    assert tracker.running == 0
    again = EnergyMeter((), clock=tracker.clock)
    assert tracker.running == 1
    del again  # nobody closed it
    gc.collect()
    assert tracker.running == 0


def test_without_rapl_there_is_an_estimate_only(tracker, monkeypatch, tmp_path):
    monkeypatch.setattr(tracker, "mode", "cpu_load")
    monkeypatch.setattr(tracker, "design_power", 150.0)
    for folder, reason in ((tmp_path / "none", "is not there"), (tmp_path, "is readable in")):
        monkeypatch.setattr(source, "POWERCAP", folder)
        meter = EnergyMeter((), clock=tracker.clock)
        with meter.window("a") as metered:
            tracker.clock.sleep(10)
        found = figures(metered.measurement)
        assert found["cpu", "none"].value is None
        assert reason in found["cpu", "none"].reason
        assert found["cpu", "estimate"].value == pytest.approx(600)
        assert (
            "thermal design power (150 W), of the whole machine"
            in found["cpu", "estimate"].notes[0]
        )
        assert metered.measurement.measured.value is None
        assert metered.measurement.estimated.source == "estimate"


@pytest.mark.parametrize("mode", ["constant", "unknown", "intel_power_gadget"])
def test_whatever_is_not_known_to_be_measured_is_an_estimate(tracker, monkeypatch, mode):
    monkeypatch.setattr(tracker, "mode", mode)
    kinds = {(s.part, s.kind) for s in CodeCarbon().sources()}
    assert kinds == {("cpu", "none"), ("cpu", "estimate"), ("ram", "none"), ("ram", "estimate")}


def test_faults_become_warnings_and_reasons(tracker, monkeypatch):
    meter = EnergyMeter((), clock=tracker.clock)
    meter.begin("a")
    tracker.clock.sleep(10)
    monkeypatch.setattr(tracker, "fails", "read")
    with pytest.warns(EnergyWarning) as caught:
        found = figures(meter.end("a"))
    assert ["unreadable" in str(w.message) for w in caught] == [True, True]  # processor, memory
    assert "unreadable" in found["cpu", "none"].reason
    monkeypatch.setattr(tracker, "fails", None)
    with meter.window("a") as metered:
        tracker.clock.sleep(10)
    assert figures(metered.measurement)["cpu", "rapl"].value == pytest.approx(600)
    monkeypatch.setattr(tracker, "fails", "start")
    with EnergyMeter((), clock=tracker.clock).window("a") as metered:
        tracker.clock.sleep(1)
    assert metered.measurement.measured.reason == "cpu: no start; ram: no start"


def test_a_machine_is_counted_by_one_process(tracker, monkeypatch):
    monkeypatch.setattr(once, "take", lambda name: once.TAKEN if name == "machine" else None)
    meter = EnergyMeter((), clock=tracker.clock)
    with meter.window("a") as metered:
        tracker.clock.sleep(10)
    assert {f.reason for f in metered.measurement.figures if f.part == "cpu"} == {once.TAKEN}
    assert metered.measurement.estimated.value is None
    monkeypatch.setattr(tracker, "mode", "cpu_load")
    own = EnergyMeter((), clock=tracker.clock, tracking="process")
    with own.window("a") as metered:
        tracker.clock.sleep(10)
    assert metered.measurement.estimated.value == pytest.approx(700)


def test_not_installed(monkeypatch):
    for name in ("codecarbon", "codecarbon.core.emissions"):
        monkeypatch.setitem(sys.modules, name, None)
    meter = EnergyMeter((), country="FRA")
    with meter.window("a") as metered:
        pass
    assert {f.reason for f in metered.measurement.figures} == {MISSING}
    assert metered.measurement.carbon_intensity.reason == MISSING


# With CodeCarbon itself


def tables():
    codecarbon = optional.module("codecarbon")
    return Path(codecarbon.__file__).parent / "data" / "private_infra"


def test_intensities_are_those_of_the_tables():
    countries = json.loads((tables() / "global_energy_mix.json").read_text())
    for code in ("FRA", "POL", "USA"):
        expected = countries[code]["carbon_intensity"]
        found = grid_intensity(code.lower())
        assert found.value == pytest.approx(expected)
        assert (found.unit, found.source) == ("g CO2e/kWh", "grid")
    states = json.loads((tables() / "2023" / "usa_emissions.json").read_text())
    pounds = states["california"]["emissions"]  # a MWh
    assert grid_intensity("USA", "california").value == pytest.approx(pounds * 0.45359237)
    with pytest.raises(ValueError, match=r"^country: expected an ISO 3166 code .* found 'France'"):
        grid_intensity("France")
    with pytest.raises(ValueError, match=r"^region: expected one of USA .* found 'bavaria'"):
        EnergyMeter((), cpu=False, country="USA", region="bavaria")


def test_itself_and_what_it_leaves_behind():
    optional.module("codecarbon")
    logger = logging.getLogger("codecarbon")
    threads, handlers = set(threading.enumerate()), logger.handlers[:]
    with EnergyMeter(()) as meter:
        handlers = logger.handlers[:]
        with meter.window("a") as metered:
            threading.Event().wait(3)  # longer than the source may be behind
    design = [n for f in metered.measurement.figures for n in f.notes if "thermal design" in n]
    found = figures(metered.measurement)
    assert found["ram", "estimate"].value > 0
    if design:  # a machine without RAPL
        watts = float(design[0].partition("(")[2].partition(" W")[0])
        assert found["cpu", "none"].value is None
        seconds = metered.measurement.seconds
        # Its last second may be missing, and an idle machine draws a part of its design power.
        assert 0.05 * (seconds - 1) < found["cpu", "estimate"].value / watts < seconds
    else:
        assert found["cpu", "rapl"].value > 0
    assert logger.handlers == handlers
    assert logger.filters == []
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=3)  # its timers have been told to end
        assert not thread.is_alive()


@pytest.mark.full
def test_no_files_no_network_no_output(tmp_path):
    optional.module("codecarbon")
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir(), work.mkdir()
    # Everything that a user's configuration could ask CodeCarbon for.
    (home / ".codecarbon.config").write_text(
        "[codecarbon]\nsave_to_file=true\nsave_to_api=true\nco2_signal_api_token=x\n"
        "emissions_endpoint=http://127.0.0.1:9/\noutput_methods=csv,api\nallow_multiple_runs=false\n"
    )
    code = textwrap.dedent(
        """
        import socket, time
        tried = []

        def refuse(*arguments, **_):
            tried.append(arguments)
            raise OSError("no network")

        socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
        from resque_ext.energy import EnergyMeter
        with EnergyMeter((), country="FRA") as meter:
            with meter.window("a") as metered:
                time.sleep(0.3)
        assert metered.measurement.estimated.value > 0, metered
        assert metered.measurement.estimated_emissions.value > 0
        assert not tried, tried
        """
    )
    environment = {
        **os.environ,
        "HOME": str(home),
        "TMPDIR": str(tmp_path),
        "CODECARBON_SAVE_TO_FILE": "true",
        "CODECARBON_EMISSIONS_ENDPOINT": "http://127.0.0.1:9/",
        "CODECARBON_LOG_LEVEL": "debug",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(work.iterdir()) == []
    assert [p.name for p in home.iterdir()] == [".codecarbon.config"]
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["home", "resque_ext-energy-machine.lock", "work"]


def test_a_source_says_how_it_reads_and_nothing_says_why_not():
    with pytest.raises(TypeError, match=r"abstract.* _joules"):
        Source("gpu:0", "mine", 0.0)
    reading = Nothing("ram", "no counter").read()
    assert (reading.joules, reading.breaks, reading.reason) == (None, 0, "no counter")
