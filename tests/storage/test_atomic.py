"""Files that are replaced: whole, or not at all."""

import os

import pytest

from resque_ext.storage.atomic import replaced


def test_the_new_content_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "a.json"
    with replaced(path) as beside:
        beside.write_text("old")
        assert not path.exists()
    with replaced(path) as beside:
        assert beside.parent == path.parent
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("when", ["before it is written", "half written", "on its way to the disk"])
def test_a_failure_leaves_what_was_there(when, existed, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    if existed:
        path.write_text("old")

    def full(*_):
        raise OSError(28, "no space left on device")

    if when == "on its way to the disk":
        monkeypatch.setattr(os, "fsync", full)

    def write():
        with replaced(path) as beside:
            if when == "before it is written":
                full()
            beside.write_text("half")
            if when == "half written":
                full()

    with pytest.raises(OSError, match="no space left"):
        write()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"] * existed
