"""What people pass every day, through the public API alone: the right number, or one clear line.

Each test is one kind of input that once gave a wrong number, a crash or a needless refusal. The
tests of the rooms go into depth. The oracle is independent: a mean by hand, NumPy, what was saved.
"""

import io
import json
import os
import sys
import tarfile

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import optional
from helpers.study_runs import random_runs
from torch import nn

import resque_ext as r
from resque_ext import cli
from resque_ext.data.sources import ImageFolderSource, NpySource, ParquetSource, SourceError
from resque_ext.errors import InputError
from resque_ext.retraining import read_runs

ROWS, CLASSES = 48, 3
Y = torch.arange(ROWS) % CLASSES


def seeded(number=0):
    return torch.Generator().manual_seed(number)


X = torch.randn(ROWS, 6, generator=seeded())


def made(*layers, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(*layers).eval()


def same(found, expected, tolerance=1e-6):
    return float(found) == pytest.approx(float(expected), abs=tolerance)


def by_arrays(old, new):
    return float(r.resque_dist(old, new, Y, Y))


# --- Texts, tokens and maps

LENGTHS = torch.randint(2, 8, (ROWS,), generator=seeded(1)).tolist()
OLD, NEW = (
    [torch.randint(4, 50, (n,), generator=seeded(s * ROWS + i)) for i, n in enumerate(LENGTHS)]
    for s in (1, 2)
)


def loader(texts, width, left=False, size=16):
    ids = torch.ones(len(texts), width, dtype=torch.long)
    mask = torch.zeros(len(texts), width, dtype=torch.long)
    for i, text in enumerate(texts):
        place = slice(width - len(text), width) if left else slice(0, len(text))
        ids[i, place], mask[i, place] = text, 1
    return [
        ({"input_ids": ids[i : i + size], "attention_mask": mask[i : i + size]}, Y[i : i + size])
        for i in range(0, len(texts), size)
    ]


def bert(kind):
    transformers = optional.module("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=CLASSES,
    )
    return getattr(transformers, kind)(config).eval()


def hidden(model, texts):
    """The last hidden state of each text by itself, without any padding."""
    with torch.no_grad():
        states = [model(input_ids=t[None], output_hidden_states=True).hidden_states for t in texts]
    return [state[-1][0] for state in states]


@pytest.mark.parametrize("index", ["resque_dist", "arm", "preindex", "linear_residual"])
def test_padding_is_not_averaged(index):
    model = bert("BertForSequenceClassification")
    paired = index == "preindex"
    found = [
        r.score(
            model, loader(OLD, 8), loader(NEW, width), indices=index, paired=paired, progress=False
        )
        for width in (8, 13)
    ]
    assert same(found[1], found[0])


def test_a_layer_of_tokens_is_the_mean_of_the_real_ones():
    model = bert("BertForSequenceClassification")
    layer = "bert.encoder.layer.0"
    at_layer = [
        r.score(model, loader(OLD, 8), loader(NEW, width), layer=layer, progress=False)
        for width in (8, 13)
    ]
    old, new = (torch.stack([h.mean(0) for h in hidden(model, t)]) for t in (OLD, NEW))
    for one in at_layer:
        assert same(one.value, by_arrays(old, new), 1e-5)


def test_a_decoder_is_read_at_the_token_whose_logits_it_returns():
    transformers = optional.module("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32, num_labels=3, pad_token_id=1
    )
    model = transformers.GPT2ForSequenceClassification(config).eval()
    old, new = (torch.stack([h[-1] for h in hidden(model, t)]) for t in (OLD, NEW))
    for width in (8, 13):
        found = r.score(model, loader(OLD, 8), loader(NEW, width), progress=False)
        assert same(found.value, by_arrays(old, new), 1e-5)


def test_a_sentence_model_gives_the_masked_mean_and_no_accuracy():
    model = bert("BertModel")
    found = r.score(model, loader(OLD, 8), loader(NEW, 13), progress=False)
    old, new = (torch.stack([h.mean(0) for h in hidden(model, t)]) for t in (OLD, NEW))
    assert same(found.value, by_arrays(old, new), 1e-5)
    assert found.old_accuracy is None


def test_outputs_that_are_mappings_have_an_accuracy_and_can_be_layers():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = made(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, CLASSES)

        def forward(self, x):
            x = self.body(x)
            return {"hidden": x, "logits": self.head(x)}

    model = Wrapped().eval()
    data = [(X, Y)]
    found = r.score(model, data, [(X + 1, Y)], progress=False)
    with torch.no_grad():
        out, shifted = model(X), model(X + 1)
    assert found.old_accuracy == (out["logits"].argmax(1) == Y).double().mean().item()
    path = r.score(model, data, [(X + 1, Y)], layer="output:hidden", progress=False)
    assert same(path.value, by_arrays(out["hidden"], shifted["hidden"]))


def test_channels_last_maps_are_pooled_over_their_places():
    class Windows(nn.Module):  # [N, H, W, C] within, as windowed transformers have it
        def __init__(self):
            super().__init__()
            self.embed, self.norm = nn.Linear(3, 5), nn.LayerNorm(5)
            self.head = nn.Linear(5, CLASSES)

        def forward(self, x):
            return self.head(self.norm(self.embed(x.permute(0, 2, 3, 1))).mean((1, 2)))

    torch.manual_seed(0)
    model = Windows().eval()
    old, new = (torch.rand(ROWS, 3, 5, 5, generator=seeded(s)) for s in (1, 2))
    found = r.score(model, [(old, Y)], [(new, Y)], layer="norm", progress=False)
    with torch.no_grad():
        maps = [model.norm(model.embed(x.permute(0, 2, 3, 1))).mean((1, 2)) for x in (old, new)]
    assert same(found.value, by_arrays(*maps))


def test_the_layers_of_a_backbone_do_not_depend_on_its_head():
    body = made(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
    found = []
    for classes in (CLASSES, 100):
        model = nn.Sequential(*body, nn.Linear(8, classes)).eval()
        found.append(r.score(model, [(X, Y)], [(X + 1, Y)], indices="arm", progress=False))
    assert found[0].layers == found[1].layers
    assert same(found[0], found[1])
    bare = r.score(body, [(X, Y)], [(X + 1, Y)], progress=False)
    assert bare.old_accuracy is None  # its features are no scores of classes


# --- Tensors


def test_tensors_with_the_negative_bit():
    negative = torch._neg_view(X)
    assert torch.equal(
        r.ops.class_moments(negative, Y, CLASSES)[1], r.ops.class_moments(-X, Y, CLASSES)[1]
    )
    index = r.ResqueDist(CLASSES)
    index.update(negative, Y, side="old")
    index.update(-X, Y, side="new")
    assert float(index.compute()) == 0


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_an_index_inside_a_compiled_function(backend):
    @torch.compile(backend=backend)
    def compiled(x):
        index = r.ResqueDist(CLASSES)
        index.update(x * 2, Y, side="old")
        index.update(x + 1, Y, side="new")
        return float(index.compute()), float(r.resque_dist(x * 2, x + 1, Y, Y))

    assert compiled(X) == (by_arrays(X * 2, X + 1),) * 2


@pytest.mark.filterwarnings("error")
def test_tensors_without_a_storage_are_refused_or_are_zeros():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        fake, labels = mode.from_tensor(X), mode.from_tensor(Y)
    for y in (Y, labels):
        for call in (
            lambda y: r.resque_dist(fake, fake, y, y),
            lambda y: r.resque_task(fake, y),
            lambda y: r.linear_residual(fake, fake, y, y),
        ):
            with pytest.raises(TypeError, match="expected"):
                call(y)
    zeros = r.ops.class_moments(torch._efficientzerotensor(ROWS, 6), Y, CLASSES)[1]
    assert zeros.abs().max() == 0


def test_what_holds_numbers_is_taken():
    right = by_arrays(X, X + 1)
    names = np.array(["ant", "bee", "cat"])[Y.numpy()]
    for x, y in (
        (X.tolist(), Y.tolist()),
        (X.numpy(), Y.numpy()),
        (np.asfortranarray(X.numpy()), Y.numpy().astype(">i4")),
        (X.numpy().astype(">f4"), names.tolist()),
        (X, names),
    ):
        new = np.asarray(x, dtype=np.float32) + np.float32(1)
        assert same(r.resque_dist(x, new, y, y), right)
    pandas = optional.module("pandas")
    frame = pandas.DataFrame(X.numpy())
    assert same(r.resque_dist(frame, frame + 1, pandas.Series(Y.numpy()), Y), right)


def test_integers_are_what_they_say():
    x = torch.randint(-9, 9, (ROWS, 5), generator=seeded(3), dtype=torch.int8)
    right = by_arrays(x.double(), x.double() + 1)
    assert same(r.resque_dist(x, x + 1, Y, Y), right)


def test_labels_to_ignore_are_named():
    y = Y.clone()
    y[5] = -100
    with pytest.raises(ValueError, match=r"-100") as caught:
        r.resque_dist(X, X + 1, y, Y)
    assert "\n" not in str(caught.value)


def test_bytes_of_images_reach_a_model_as_floats():
    pixels = torch.randint(256, (ROWS, 3, 4, 4), generator=seeded(4), dtype=torch.uint8)
    model = made(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES))
    found = r.score(model, [(pixels, Y)], [(pixels.flip(3), Y)], progress=False)
    floats = pixels / 255
    right = r.score(model, [(floats, Y)], [(floats.flip(3), Y)], progress=False)
    assert same(found.value, right.value)


# --- Labels that are not there, indices that fail


@pytest.mark.parametrize("new", [[X + 1], [(X + 1, None)], [(X + 1, torch.rand(ROWS, 4))]])
def test_arm_and_p_read_no_labels(new):
    model = made(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    old = [(X, Y)]
    for index in ("arm", "representation_distance"):
        options = {"indices": index, "paired": index != "arm", "progress": False}
        found = r.score(model, old, new, **options)
        right = r.score(model, old, [(X + 1, Y)], **options)
        assert float(found) == float(right)


def test_labels_to_ignore_are_no_misses():
    model = made(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    with torch.no_grad():
        guess = model(X).argmax(1)
    y = torch.where(torch.arange(ROWS) < 8, guess, -100)
    data = [(X, y)]
    found = r.score(model, data, [(X + 1, y * 0 - 100)], indices="arm", progress=False)
    assert found.old_accuracy == 1
    assert found.new_accuracy is None


@pytest.mark.parametrize("swapped", [False, True])
def test_names_of_classes_and_numbers_are_not_put_together(swapped):
    names = np.array(["wolf", "ant", "bee"])[Y.numpy()]
    sides = [(X.numpy(), names), (X.numpy(), Y.numpy())]
    old, new = sides[::-1] if swapped else sides
    with pytest.raises(ValueError, match="labels of one kind on both sides"):
        r.screen({"m": None}, old, {"c": new}, progress=False)


@pytest.mark.parametrize("new", [[X + 1], [(X + 1, None)], [{"input": X + 1}]])
def test_screen_takes_batches_without_labels(new):
    model = made(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    with torch.no_grad():
        model[2].bias -= model(X + 1).mean(0)  # so that every class is predicted
    options = {"anytime": False, "progress": False}
    (found,) = (
        each.result
        for each in r.screen({"m": model}, [(X, Y)], {"c": new}, indices="arm", **options)
    )
    right = r.score(model, [(X, Y)], [X + 1], indices="arm", progress=False)
    assert same(found.indices["arm"].value, right)
    assert found.new_accuracy is None
    predicting = {"m": r.screening.ShelfModel(lambda: model, labels="predicted")}
    (found,) = (each.result for each in r.screen(predicting, [(X, Y)], {"c": new}, **options))
    right = r.score(model, [(X, Y)], [X + 1], labels="predicted", progress=False)
    assert same(found.indices["resque_dist"].value, right)
    with pytest.raises(ValueError, match="-100"):
        r.screen({"m": model}, [(X, Y)], {"c": new}, on_error="raise", **options)


def test_predicted_labels_are_marked():
    model = made(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    with torch.no_grad():
        model[2].bias -= model(X + 1).mean(0)  # so that every class is predicted
        guess = model(X + 1).argmax(1)
        old, new = (model[:2](x) for x in (X, X + 1))
    assert len(guess.unique()) == CLASSES
    found = r.score(model, [(X, Y)], [X + 1], labels="predicted", progress=False)
    assert same(found.value, r.resque_dist(old, new, Y, guess))
    assert found.labels == "predicted"


def test_a_missing_class_is_said_before_any_pass():
    model = made(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))
    rows = Y < 2
    with pytest.raises(ValueError, match="class"):
        r.score(model, [(X, Y)], [(X[rows], Y[rows])], progress=False)
    assert not runs


def test_an_index_that_fails_leaves_the_others():
    model = made(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    rows = Y < 2
    old, new = [(X, Y)], [(X[rows], Y[rows])]  # RESQUE_dist needs every class on both sides
    indices = ("arm", "resque_dist")
    found = r.score(model, old, new, indices=indices, errors="keep", progress=False)
    assert float(found["arm"]) == float(r.score(model, old, new, indices="arm", progress=False))
    assert isinstance(found["resque_dist"].error, ValueError)


BATCH = (X, Y)
ONCE = iter([BATCH])
NET = made(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def spoilt(value):
    x = X.clone()
    x[3, 1] = value
    return x


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: r.score(NET, X, X), r"old: expected batches .* or a list: \[\(inputs, labels"),
        (lambda: r.score(NET, BATCH, BATCH), r"old: .* found one batch \(pass a DataLoader, or"),
        (lambda: r.score(NET, ONCE, ONCE), "new: expected batches of its own, .* read once"),
        (lambda: r.score(NET, [], [BATCH]), "old: expected at least one batch, found none"),
        (lambda: r.forecast(NET, None, X, [BATCH], 0.9), "train: expected batches"),
        (lambda: r.forecast(NET, None, [BATCH], [BATCH], 90), "target_accuracy: expected .* 1"),
        (lambda: r.resque_dist(spoilt(torch.nan), X, Y, Y), "old: .* row 3, column 1"),
        (lambda: r.resque_dist(X, spoilt(torch.inf), Y, Y), "new: .* row 3, column 1"),
        (lambda: r.resque_dist(X[:0], X, Y[:0], Y), "labels: .* class 0 has no old rows"),
        (lambda: r.resque_dist(X, X, Y + 9, Y, 3), "old_labels: .* 0..2, found 9 at position 0"),
        (lambda: r.resque_dist(X, X, Y.double(), Y), "old_labels: expected int32 or int64"),
        (lambda: r.shifts.make("gausian", 0.1), "did you mean 'gaussian'"),
        (
            lambda: r.shifts.make("gaussian"),
            r"level: expected a number, .* in \[0, 10\] for gaussian",
        ),
        (
            lambda: r.score(NET, [BATCH], [BATCH], indices="arn"),
            r"indices: expected .* found \['arn'\]",
        ),
    ],
)
def test_what_is_passed_wrongly_is_one_line_that_helps(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_machine_without_a_gpu_is_told():
    for call in (
        lambda: r.score(NET, [BATCH], [BATCH], device="cuda"),
        lambda: r.forecast(NET, None, [BATCH], [BATCH], 0.9, device="cuda"),
        lambda: r.resque_task(X, Y, device="cuda"),
    ):
        with pytest.raises(ValueError, match=r"0 CUDA devices, found 'cuda' \(device='cpu'"):
            call()


# --- Files


def png(folder, name, image, **options):
    for sub in ("a", "b"):
        (folder / sub).mkdir(exist_ok=True)
        image.save(folder / sub / name, **options)


def images(folder):
    return torch.cat([x for x, _ in ImageFolderSource(folder).batches(8)])


def test_grey_of_16_bits_and_floats(tmp_path):
    Image = optional.module("PIL.Image")
    deep = np.array([[100, 300], [20_000, 65_535]], np.uint16)
    png(tmp_path, "x.png", Image.fromarray(deep))
    assert np.allclose(images(tmp_path)[0, 0], deep / 65_535, atol=1e-7)
    floats = np.array([[0, 0.25], [0.5, 1]], np.float32)
    other = tmp_path / "floats"
    other.mkdir()
    png(other, "x.tiff", Image.fromarray(floats))
    assert np.array_equal(images(other)[0, 1], floats)


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_the_orientation_is_applied(tmp_path, form):
    Image = optional.module("PIL.Image")
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 8:] = 255  # the right half is white
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[274] = 6  # shown turned by 90 degrees clockwise: the left becomes the top
    png(tmp_path, f"x.{form}", image, exif=exif)
    found = images(tmp_path)[0]
    assert found.shape == (3, 16, 8)
    assert found[:, :7].max() < 0.1
    assert found[:, 9:].min() > 0.9


def test_parquet_of_lists_in_several_files(tmp_path):
    pyarrow = optional.module("pyarrow")
    from pyarrow import parquet

    kind = pyarrow.large_list(pyarrow.float32())
    for i in range(2):
        half = slice(i * ROWS // 2, (i + 1) * ROWS // 2)
        table = {"x": pyarrow.array(X[half].tolist(), kind), "y": Y[half].tolist()}
        parquet.write_table(pyarrow.table(table), tmp_path / f"part-{i}.parquet")
    for where in (tmp_path, tmp_path / "part-*.parquet"):
        read = list(ParquetSource(where, features="x", labels="y").batches(7))
        assert torch.equal(torch.cat([x for x, _ in read]).float(), X)
        assert torch.equal(torch.cat([y for _, y in read]), Y)


def test_a_null_row_is_a_fault_of_its_own(tmp_path):
    pyarrow = optional.module("pyarrow")
    from pyarrow import parquet

    rows = X.tolist()
    rows[5] = None
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"features": rows, "labels": Y.tolist()}), path)
    faults = []
    read = ParquetSource(path).batches(100, on_fault="skip", faults=faults)
    assert sum(len(y) for _, y in read) == ROWS - 1
    assert len(faults) == 1


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_checkpoints_of_wrapped_models(tmp_path, monkeypatch, capsys, prefix, suffix):
    model = made(nn.Linear(6, CLASSES), seed=3)
    state = {prefix + name: value for name, value in model.state_dict().items()}
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        safetensors.torch.save_file(state, path)
    (tmp_path / "wrapped_net.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Linear(6, 3))\n"
    )
    np.savez(tmp_path / "x.npz", inputs=X.numpy(), labels=Y.numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    both = ["--old", "x.npz", "--new", "x.npz"]
    code, out, _ = main(capsys, "score", "wrapped_net:net", "--weights", path, *both, "--json")
    sys.modules.pop("wrapped_net", None)
    assert code == 0
    with torch.no_grad():
        right = (model(X).argmax(1) == Y).double().mean().item()
    assert json.loads(out)["indices"]["resque_dist"]["old_accuracy"] == pytest.approx(
        right, abs=1e-6
    )


def test_members_with_dots_in_their_names(tmp_path):
    from resque_ext.data.sources import TarSource

    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(4):
            for name, content in ((f"a.v{i}.npy", npy(X[i])), (f"a.v{i}.cls", str(i % 2).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    ((x, y),) = TarSource(path, kind="embeddings").batches(8)
    assert torch.equal(x, X[:4])
    assert y.tolist() == [0, 1, 0, 1]


def npy(values):
    data = io.BytesIO()
    np.save(data, values.numpy())
    return data.getvalue()


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", [">f4", "<f8", ">i2"])
def test_npy_of_any_byte_order_and_layout(tmp_path, order, dtype):
    x = (X.numpy() * 100).astype(dtype, order=order)
    np.save(tmp_path / "features.npy", x)
    np.save(tmp_path / "labels.npy", Y.numpy().astype(">i8"))
    read = list(NpySource(tmp_path).batches(7))
    assert np.array_equal(torch.cat([x for x, _ in read]).numpy(), x)


@pytest.mark.parametrize("header", ["{'descr': '<f4', (", "{'descr': '\x00", "{" * 3000])
def test_damaged_headers_are_one_line(tmp_path, header):
    text = header.encode("latin-1")
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    (tmp_path / "features.npy").write_bytes(content)
    np.save(tmp_path / "labels.npy", Y.numpy())
    with pytest.raises((SourceError, ValueError)) as caught:
        list(NpySource(tmp_path).batches(7))
    assert "features.npy" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- Shifts


def test_shifts_of_mappings_and_of_normalized_images():
    images = torch.rand(ROWS, 3, 4, 4, generator=seeded(5))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    m, s = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    plain = r.shifts.make("gaussian", 0.1)(images)
    normalized = r.shifts.make("gaussian", 0.1, mean=mean, std=std)((images - m) / s)
    assert torch.allclose(
        normalized, (plain - m) / s, atol=2e-6
    )  # 16 units of a float32 of about 1
    batch = r.shifts.make("gaussian", 0.1)({"pixel_values": images, "id": Y})
    assert torch.equal(batch["pixel_values"], plain)
    with pytest.raises(ValueError, match=r"mean=.*std="):
        r.shifts.make("gaussian", 0.1)((images - m) / s)


# --- The command line


def main(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_model_that_does_not_fit_its_inputs_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "narrow_net.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Linear(5, 3))\n"
    )
    np.savez(tmp_path / "x.npz", inputs=X.numpy(), labels=Y.numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code, _, err = main(capsys, "score", "narrow_net:net", "--old", "x.npz", "--new", "x.npz")
    sys.modules.pop("narrow_net", None)
    assert code == 2
    assert "mat1 and mat2" in err
    assert err.count("\n") == 1


def test_a_width_of_nothing(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "x.npz", features=X.numpy(), labels=Y.numpy())
    monkeypatch.setenv("COLUMNS", "0")
    code, out, _ = main(capsys, "dist", tmp_path / "x.npz", tmp_path / "x.npz")
    assert code == 0
    assert "RESQUE_dist" in out


@pytest.mark.parametrize("command", ["predict", "fit"])
def test_a_pipe_does_not_hang(tmp_path, capsys, command):
    os.mkfifo(tmp_path / "pipe")
    code, _, err = main(capsys, command, tmp_path / "pipe")
    assert code
    assert "Traceback" not in err


def test_short_help_and_version(capsys):
    for arguments in (["-h"], ["score", "-h"], ["--version"]):
        code, out, _ = main(capsys, *arguments)
        assert code == 0
        assert out


def test_no_empty_names_in_the_help_of_screen(capsys):
    _, out, _ = main(capsys, "screen", "--help")
    assert ", , " not in out


# --- Runs


def test_runs_can_be_read_twice(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(run.to_json() + "\n" for run in random_runs(np.random.default_rng(0))))
    runs = read_runs(path)
    assert len(list(runs)) == len(list(runs)) > 0
