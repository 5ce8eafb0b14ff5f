"""Models, weights, inputs and transforms by name, and `resque-ext score`, which takes them."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import optional
from torch import nn

import resque_ext
from resque_ext import cli
from resque_ext.data.labelled import open_batches
from resque_ext.data.transforms import make_transform
from resque_ext.model.load_model import load_model
from resque_ext.shifts import shifted_before

MODULE = """
import torch
from torch import nn

class Made:
    def model():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(8, 4))

    def normed():
        norms = [nn.BatchNorm2d(3), nn.GroupNorm(1, 3)]
        return nn.Sequential(*norms, *Made.model())

ready = nn.Linear(3, 2)
number = 5
def nothing(): return None
def broken(): raise RuntimeError("my own fault")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "made_here.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def arrays(folder):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (41, 3, 12, 10), dtype=np.uint8)
    np.savez(folder / "images.npz", inputs=images, labels=np.arange(41) % 4)
    return folder / "images.npz", images


@pytest.fixture
def images(folder):
    image = optional.module("PIL.Image")
    optional.module("torchvision")
    rng = np.random.default_rng(1)
    for side in ("old", "new"):
        for name in ("cat", "ant"):
            (folder / side / name).mkdir(parents=True)
            for i in range(5):
                pixels = rng.integers(0, 256, (20, 16 + i, 3), dtype=np.uint8)
                image.fromarray(pixels).save(folder / side / name / f"{i}.png")
    return folder


def test_a_model_and_its_weights(folder):
    model = load_model("made_here:Made.model")
    assert not model.training
    state = {k: v + 1 for k, v in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "w.safetensors")
    torch.save({"state_dict": state}, folder / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        loaded = load_model("made_here:Made.model", folder / name).state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in state.items())
    assert isinstance(load_model("made_here:ready"), nn.Linear)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("made_here", ValueError, "model: expected module:callable, found 'made_here'"),
        ("no_such_module:x", ValueError, "expected a module, found none called 'no_such_module'"),
        ("made_here:Made.other", ValueError, "to have 'Made.other', found no 'other'"),
        ("made_here:number", TypeError, "to be callable, found int"),
        ("made_here:nothing", TypeError, "to return a torch.nn.Module, found NoneType"),
        ("made_here:broken", RuntimeError, "my own fault"),
    ],
)
def test_models_that_are_refused(folder, name, error, message):
    with pytest.raises(error, match=message):
        load_model(name)


def test_weights_that_are_refused(folder):
    name = "made_here:Made.model"
    state = load_model(name).state_dict()
    with pytest.raises(FileNotFoundError, match=r"none\.pt: expected a file of weights"):
        load_model(name, "none.pt")
    safetensors.torch.save_file(dict(list(state.items())[1:]), "part.safetensors")
    with pytest.raises(ValueError, match=r"part\.safetensors: expected the weights of Sequential"):
        load_model(name, "part.safetensors")
    whole = safetensors.torch.save(state)
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.pt").write_bytes(b"PK\x03\x04 nothing")
    torch.save(load_model(name), folder / "pickled.pt")
    for file in ("cut.safetensors", "cut.pt", "pickled.pt"):
        with pytest.raises(ValueError, match=f"{file}: expected a whole file of plain tensors"):
            load_model(name, file)
    torch.save({"epoch": 3}, folder / "other.pt")
    with pytest.raises(ValueError, match=r"expected tensors by name, .* found dict"):
        load_model(name, "other.pt")
    with pytest.raises(ValueError, match="expected the suffix"):
        load_model(name, "made_here.py")


def test_arrays_in_batches(arrays):
    path, images = arrays
    batches = open_batches(path, batch_size=16)
    assert len(batches) == 3
    for _ in range(2):  # again and again
        read = list(batches)
        assert [len(y) for _, y in read] == [16, 16, 9]
        found = torch.cat([x for x, _ in read])
        assert torch.equal(found, torch.from_numpy(images).float() / 255)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"features": np.ones((2, 2)), "labels": [0, 1]}, "expected the arrays 'inputs', 'labels'"),
        ({"inputs": np.ones((2, 2)), "labels": [0, 1, 1]}, "as many labels, found inputs"),
        ({"inputs": np.ones(2), "labels": [0, 1]}, r"expected inputs \[N, ...\]"),
        ({"inputs": np.ones((0, 2)), "labels": np.zeros(0, int)}, "as many labels"),
        ({"inputs": np.ones((2, 2)), "labels": [0.5, 1]}, "labels: expected int32 or int64"),
    ],
)
def test_arrays_that_are_refused(folder, content, message):
    np.savez(folder / "x.npz", **content)
    with pytest.raises((ValueError, TypeError), match=message):
        open_batches(folder / "x.npz")


def test_names_of_classes_in_a_file(folder):
    """Numbered in sorted order; on another side as on the first."""
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    for file, names in (("old", list("bacbac")), ("new", list("ccbbcb")), ("odd", list("aabbdd"))):
        np.savez(folder / f"{file}.npz", inputs=x, labels=np.array(names))
    np.savez(folder / "numbers.npz", inputs=x, labels=np.arange(6) % 3)
    old = open_batches(folder / "old.npz")
    assert old.classes == ("a", "b", "c")
    assert next(iter(old))[1].tolist() == [1, 0, 2, 1, 0, 2]
    assert next(iter(open_batches(folder / "new.npz", like=old)))[1].tolist() == [2, 2, 1, 1, 2, 1]
    with pytest.raises(ValueError, match=r"classes of the other side \(a, b, c\), found d"):
        open_batches(folder / "odd.npz", like=old)
    with pytest.raises(ValueError, match="names of classes, as on the other side, found numbers"):
        open_batches(folder / "numbers.npz", like=old)
    with pytest.raises(ValueError, match="numbers, as on the other side, found names of classes"):
        open_batches(folder / "new.npz", like=open_batches(folder / "numbers.npz"))


def test_a_folder_of_images(images):
    with pytest.raises(ValueError, match="expected rows or images of one size"):
        list(open_batches(images / "old"))
    transforms = [make_transform('resize={"size": 12}'), make_transform('center_crop={"size": 10}')]
    batches = open_batches(images / "old", transforms, batch_size=4)
    read = list(batches)
    assert batches.classes == ("ant", "cat")
    assert [tuple(x.shape) for x, _ in read] == [(4, 3, 10, 10), (4, 3, 10, 10), (2, 3, 10, 10)]
    assert torch.cat([y for _, y in read]).tolist() == [0] * 5 + [1] * 5
    (images / "new" / "cat").rename(images / "new" / "dog")
    with pytest.raises(ValueError, match=r"expected the subfolders of the other side.*: dog on"):
        open_batches(images / "new", like=batches)
    (images / "old" / "ant" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"ant/0\.png: expected an image, found"):
        next(iter(open_batches(images / "old", transforms)))
    (images / "empty").mkdir()
    with pytest.raises(ValueError, match="expected subfolders of images"):
        open_batches(images / "empty")


def test_transforms():
    x = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    assert make_transform('resize={"size": 3}')(x).shape == (2, 3, 4, 3)
    assert torch.equal(make_transform('center_crop={"size": 2}')(x), x[:, :, 3:5, 2:4])
    gray = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    torch.testing.assert_close(make_transform("grayscale")(x)[:, 0], gray)
    normalize = make_transform('normalize={"mean": [0.1, 0.2, 0.3], "std": [1, 2, 4]}')
    torch.testing.assert_close(normalize(x)[:, 2], (x[:, 2] - 0.3) / 4)
    torch.testing.assert_close(normalize.undo(normalize(x)), x)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flip", "expected one of resize, center_crop, grayscale, normalize, found 'flip'"),
        ("resize={", "expected JSON after resize="),
        ("resize=[3]", "expected a JSON object"),
        ('resize={"width": 3}', "resize: .*width"),
        ('resize={"size": 0}', "size: expected 1 <="),
        ('normalize={"mean": [0], "std": [0]}', "std above 0"),
        ('normalize={"mean": [0, 1], "std": [1]}', "as many std"),
        ('normalize={"mean": "x", "std": [1]}', "mean: expected a list of numbers"),
    ],
)
def test_transforms_that_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        make_transform(text)


def test_a_shift_comes_before_the_normalization():
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    normalize = make_transform('normalize={"mean": [0.5], "std": [0.25]}')
    shift = resque_ext.shifts.make("contrast", 0.5)
    found = shifted_before(shift, [normalize])(normalize(x))
    torch.testing.assert_close(found, normalize(shift(x)), rtol=1e-5, atol=1e-5)
    assert shifted_before(shift, []) is shift


def run(capsys, *arguments):
    status = cli.main(["score", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_score_of_arrays(arrays, capsys):
    path, images = arrays
    options = ("made_here:Made.model", "--old", path, "--shift", "gaussian=0.2", "--seed", 3)
    status, out, err = run(capsys, *options, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)["indices"]["resque_dist"]
    x, y = torch.from_numpy(images).float() / 255, torch.arange(41) % 4
    batches = list(zip(x.split(64), y.split(64), strict=True))
    shift = resque_ext.shifts.make("gaussian", 0.2, 3)
    expected = resque_ext.score(
        load_model("made_here:Made.model"), batches, shift=shift, progress=False
    )
    assert found["value"] == expected.value
    status, out, err = run(capsys, *options)
    assert (status, err) == (0, "")
    assert "resque_dist" in out
    assert f"{expected.value:.4f}" in out
    assert "embedding read at 4:input" in out


def test_score_by_severity_and_with_adapted_normalization(arrays, capsys):
    path, images = arrays
    x, y = torch.from_numpy(images).float() / 255, torch.arange(41) % 4
    model, batches = load_model("made_here:Made.normed"), [(x, y)]
    command = ("made_here:Made.normed", "--old", path, "--batch-size", 41, "--json", "--shift")
    given = {
        ("fog", "--severity", 3): False,
        ("fog", "--severity", 3, "--adapt-normalization"): True,
        ("fog", "--adapt-normalization", "reestimate", "--severity", 3): True,
        ("fog", "--severity", 3, "--adapt-normalization=match"): "match",
        ("fog", "--severity", 3, "--adapt-normalization", "match"): "match",
    }
    for arguments, adapt in given.items():
        status, out, err = run(capsys, *command, *arguments)
        assert (status, err) == (0, "")
        expected = resque_ext.score(
            model,
            batches,
            shift=resque_ext.shifts.make("fog", severity=3),
            adapt_normalization=adapt,
            progress=False,
        )
        assert json.loads(out)["indices"]["resque_dist"]["value"] == expected.value
    status, out, err = run(capsys, "--adapt-normalization", *command, "fog", "--severity", 3)
    assert (status, err) == (0, "")  # before the model, whose name it does not take for a value


def test_score_of_folders(images, capsys):
    crop = ("--transform", 'resize={"size": 12}', "--transform", 'center_crop={"size": 10}')
    normalize = ("--transform", 'normalize={"mean": [0.5], "std": [0.5]}')
    sides = ("made_here:Made.model", "--old", "old", "--new", "new")
    status, out, _ = run(capsys, *sides, *crop, *normalize, "--json")
    assert status == 0
    assert json.loads(out)["indices"]["resque_dist"]["counts"]["old"][:2] == [5, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--old", "images.npz"), "new: expected --new or --shift, found neither"),
        (("--old", "images.npz", "--shift", "fog=1"), "fog"),
        (("--old", "images.npz", "--severity", "1"), "severity: expected a kind, --shift fog"),
        (("--old", "images.npz", "--shift", "fog", "--severity", "6"), "severity: expected an in"),
        (("--old", "images.npz", "--shift", "frost"), "expected KIND=LEVEL, found 'frost'"),
        (("--old", "none.npz", "--shift", "frost=0.1"), "none.npz: expected"),
        (("--new", "images.npz"), "old: expected batches, because 'resque_dist' reads it"),
        (
            ("--old", "images.npz", "--shift", "frost=0.1", "--index", "x"),
            "indices: expected names",
        ),
        (
            ("--old", "images.npz", "--shift", "frost=0.1", "--per-layer"),
            "per-layer: expected preindex, representation_distance or arm",
        ),
        (
            (
                *("--old", "images.npz", "--shift", "frost=0.1", "--transform"),
                *('normalize={"mean": [0], "std": [1]}', "--transform", "grayscale"),
            ),
            "expected normalize as the last one",
        ),
    ],
)
def test_refused_on_the_command_line(arrays, capsys, arguments, message):
    status, out, err = run(capsys, "made_here:Made.model", *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
