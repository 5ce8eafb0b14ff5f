"""Any command, metered: its status, its output, its energy."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from helpers.fake_nvml import FakeGpu, FakeNvml, RealClock

from resque_ext.energy import once, run_command


@pytest.fixture(autouse=True)
def _own_locks(monkeypatch, tmp_path):
    monkeypatch.setattr(once, "folder", lambda: tmp_path)


def run(*words, **options):
    return run_command(words, **{"cpu": False, "gpus": ()} | options)


@pytest.mark.parametrize("status", [0, 3, 255])
def test_status_passes_through(status):
    assert run("sh", "-c", f"exit {status}")["exit_status"] == status


def test_a_signal_s_status_is_a_shell_s():
    assert run("sh", "-c", "kill -9 $$")["exit_status"] == 137


def test_input_and_output_are_the_command_s_own(capfd):
    result = run("sh", "-c", "echo out; echo err >&2")
    assert capfd.readouterr() == ("out\n", "err\n")
    assert result["command"] == ["sh", "-c", "echo out; echo err >&2"]


def test_energy_of_a_known_gpu():
    clock = RealClock()
    fake = FakeNvml(FakeGpu(joules=lambda t: 200 * t), clock=clock)
    result = run("sleep", "0.4", gpus=[0], nvml=fake, clock=clock, carbon_intensity=360)
    assert 0.4 <= result["seconds"] < 5
    joules = result["joules"]
    assert joules["source"] == "nvml-counter", joules
    assert joules["value"] == pytest.approx(200 * result["seconds"], rel=0.02)
    assert result["kg_co2"]["value"] == pytest.approx(joules["value"] * 1e-7)
    assert any("short window" in note for note in joules["notes"])
    assert fake.users == 0  # the meter was closed


def test_nothing_to_measure_is_said():
    result = run("true")
    for name in ("joules", "kg_co2", "joules_estimated", "kg_co2_estimated"):
        assert result[name]["value"] is None
        assert result[name]["reason"]


@pytest.mark.full
def test_ctrl_c_is_the_command_s(tmp_path):
    """Both get it, as from a terminal; the command decides, and is metered to its end."""
    code = textwrap.dedent(
        """
        import sys
        from resque_ext.energy import run_command
        script = "trap 'exit 7' INT; echo ready; while :; do sleep 0.05; done"
        result = run_command(["sh", "-c", script], cpu=False, gpus=())
        sys.exit(result["exit_status"])
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 7
    process.stdout.close()


def test_handlers_come_back():
    before = signal.getsignal(signal.SIGINT)
    run("true")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("command", "error", "message"),
    [
        ([], ValueError, "^command: expected a program and its arguments, found nothing"),
        (["no-such-program-here"], ValueError, "^command: .* found 'no-such-program-here'"),
        ("ls -l", TypeError, "^command: expected a list of words, found 'ls -l'"),
        (["sleep", 1], TypeError, "^command: expected a list of words"),
    ],
)
def test_bad_commands(command, error, message):
    with pytest.raises(error, match=message):
        run_command(command, cpu=False, gpus=())
