"""Names of classes mean the same on both sides of a screening, or are refused."""

import numpy as np
import pytest

import resque_ext as r
from resque_ext.data.images import list_images
from resque_ext.data.sources import ArraySource, ImageFolderSource

X = np.random.default_rng(0).normal(1, 1, (60, 4)).astype(np.float32)
NAMES = np.array(["ant", "cat", "dog"])[np.arange(60) % 3]


def screen(old, new):
    table = r.screen({"m": None}, old, {"c": new}, anytime=False, on_error="raise")
    return table.results[0].indices["resque_dist"].value


def test_names_of_arrays():
    indices = np.arange(60) % 3
    assert screen((X, NAMES), (X[::-1] + 1, NAMES[::-1])) == screen(
        (X, indices), (X[::-1] + 1, indices[::-1])
    )
    assert ArraySource(X, NAMES).classes == ("ant", "cat", "dog")
    # By themselves dog and cat would be the classes 1 and 0, as cat and ant are there.
    fewer = NAMES != "ant"
    with pytest.raises(ValueError, match=r"candidates\.c: expected classes in the order .*'cat'"):
        screen((X, NAMES), (X[fewer], NAMES[fewer]))


@pytest.fixture
def folders(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for side, names in (("old", ["ant", "cat", "dog"]), ("new", ["cat", "dog"])):
        for name in names:
            (tmp_path / side / name).mkdir(parents=True)
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / side / name / "0.png")
    return tmp_path


def test_a_folder_without_a_class_keeps_the_numbers_of_the_other_side(folders):
    names, files = list_images(folders / "new", ["ant", "cat", "dog"])
    assert names == ("ant", "cat", "dog")
    assert [(file.parent.name, label) for file, label in files] == [("cat", 1), ("dog", 2)]
    with pytest.raises(ValueError, match="found others: ant on one side alone"):
        list_images(folders / "old", ["cat", "dog"])


def test_folders_of_other_classes_are_refused_by_screen(folders):
    from torch import nn

    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Linear(8, 3))
    old, new = ImageFolderSource(folders / "old"), ImageFolderSource(folders / "new")
    with pytest.raises(ValueError, match=r"'cat' as class 0, and as class 1 there: give both"):
        r.screen({"m": model}, old, {"c": new})
