"""`resque-ext energy -- COMMAND`: output and exit status pass through, the figures go to stderr."""

import json
import sys

from resque_ext import cli


def run(capfd, *arguments):
    status = cli.main(["energy", *arguments])
    return status, *capfd.readouterr()


def test_output_and_status_pass_through(capfd):
    code = "import sys; print('mine'); sys.exit(3)"
    status, out, err = run(capfd, "--json", "--", sys.executable, "-c", code)
    assert (status, out) == (3, "mine\n")
    found = json.loads(err.splitlines()[-1])
    assert found["exit_status"] == 3
    assert found["command"] == [sys.executable, "-c", code]
    assert found["seconds"] > 0
    for key in ("joules", "kg_co2"):  # unknown is null with a reason, never 0
        figure = found[key]
        assert (figure["value"] is None) == (figure["reason"] is not None)


def test_a_table(capfd):
    status, out, err = run(capfd, "--carbon-intensity", "300", "--", sys.executable, "-c", "")
    assert (status, out) == (0, "")
    assert "joules" in err
    assert "unknown" in err or " J " in err


def test_refused(capfd):
    for arguments, message in (
        (("--", "no-such-program-here"), "expected a program on the PATH"),
        (("--carbon-intensity", "-5", "--", sys.executable, "-c", ""), "carbon_intensity"),
    ):
        status, out, err = run(capfd, *arguments)
        assert (status, out) == (2, "")
        assert message in err.splitlines()[-1]
