"""Images of bytes, quantized models, and models whose layers cannot be observed."""

import warnings

import pytest
import torch
from torch import nn

import resque_ext as r
from resque_ext.model.hooks import forward

torch.manual_seed(0)
BYTES = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8)
OTHER = torch.randint(0, 200, (24, 3, 8, 8), dtype=torch.uint8)
Y = torch.arange(24) % 3


def conv():
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(6, 3)).eval()


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


class Converts(nn.Module):
    """Makes floats of its inputs itself, in its own range."""

    def __init__(self):
        super().__init__()
        self.inner = conv()

    def forward(self, x):
        return self.inner((x.float() - 100) / 50)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = conv()
        self.embedding = nn.Embedding(256, 6)

    def forward(self, pixel_values, tokens):
        return self.inner(pixel_values) + self.embedding(tokens.long()).mean(1)[:, :3]


def floats(x):
    return x.float() / 255


@pytest.mark.parametrize("make", [conv, mlp])
@pytest.mark.parametrize("index", ["resque_dist", "linear_residual", "arm", "resque_task"])
def test_images_of_bytes_are_floats_in_0_1(make, index):
    model = make()
    options = {"layer": "4:input" if make is conv else "3:input", "indices": index}
    found = r.score(model, [(BYTES, Y)], [(OTHER, Y)], **options)
    expected = r.score(model, [(floats(BYTES), Y)], [(floats(OTHER), Y)], **options)
    assert found.to_dict() == expected.to_dict()
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_half_precision_and_mappings():
    model = conv().to(torch.bfloat16)
    expected = model(BYTES.to(torch.bfloat16) / 255)
    assert torch.equal(forward(model, BYTES), expected)
    model, tokens = Named().eval(), torch.randint(0, 256, (24, 5), dtype=torch.uint8)
    found = forward(model, {"pixel_values": BYTES, "tokens": tokens})
    assert torch.equal(found, model(floats(BYTES), tokens))


VALUES = torch.randint(-9, 9, (24, 3, 8, 8), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.int16])
@pytest.mark.parametrize("make", [conv, mlp])
def test_numbers_of_another_dtype_keep_their_values(make, dtype):
    model = make()
    found = r.score(model, [(VALUES.to(dtype), Y)], [(VALUES.to(dtype) * 2, Y)])
    expected = r.score(model, [(VALUES.float(), Y)], [(VALUES.float() * 2, Y)])
    assert found.to_dict() == expected.to_dict()
    assert not any(m._forward_pre_hooks for m in model.modules())
    values = VALUES.numpy().astype("float64")
    arrays = r.score(model, [(values, Y.numpy())], [(values * 2, Y.numpy())])
    assert arrays.to_dict() == expected.to_dict()


def test_floats_for_a_model_in_another_precision():
    for dtype in (torch.float64, torch.bfloat16):
        model = conv().to(dtype)
        assert torch.equal(forward(model, VALUES.float()), model(VALUES.to(dtype)))
    model = nn.GRU(8, 4, batch_first=True).eval()
    x = VALUES[:, 0]
    assert torch.equal(forward(model, x.double())[0], model(x.float())[0])


def test_uint16_is_an_image():
    x = torch.arange(24 * 192).reshape(24, 3, 8, 8) * 13
    expected = conv()((x / 65535).float())
    torch.testing.assert_close(forward(conv(), x.to(torch.uint16)), expected)


def test_indices_are_left_alone():
    ids = torch.randint(0, 50, (24, 5))
    model = nn.Sequential(nn.Embedding(50, 6), nn.Flatten(), nn.Linear(30, 3)).eval()
    assert torch.equal(forward(model, ids), model(ids))
    model, x = Named().eval(), VALUES.double()
    assert torch.equal(
        forward(model, {"pixel_values": x, "tokens": ids}), model(x.float(), tokens=ids)
    )


def test_a_mixed_model_that_converts_by_itself_is_left_alone():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = nn.Linear(8, 8).bfloat16(), nn.LayerNorm(8)

        def forward(self, x):
            return self.a(self.norm(self.a(x.bfloat16())))

    model, x = Mixed(), VALUES[:, 0].float()
    assert torch.equal(forward(model, x), model(x))


def test_a_model_that_converts_by_itself_is_left_alone():
    model = Converts().eval()
    assert torch.equal(forward(model, BYTES), model(BYTES))


def programs():
    model, x = conv(), floats(BYTES)
    yield "TorchScript", torch.jit.script(model)
    yield "TorchScript", torch.jit.trace(model, x)
    yield "exported", torch.export.export(model, (x,)).module()


@pytest.mark.parametrize("options", [{}, {"layer": "0"}, {"layer": "4:input"}, {"indices": "arm"}])
def test_models_that_run_as_one_program_are_refused_in_one_line(options):
    data = [(floats(BYTES), Y)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = list(programs())
    for kind, model in made:
        with pytest.raises(TypeError, match=f"model: expected .* observed, found an? {kind} model"):
            r.score(model, data, data, **options)


def test_a_scripted_part_of_a_model_is_refused_as_a_layer():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(torch.jit.script(mlp()), nn.Linear(3, 3))
    data = [(floats(BYTES), Y)]
    assert r.score(model, data, data, layer="1").value < 1e-6
    with pytest.raises(TypeError, match="found a TorchScript model"):
        r.score(model, data, data, layer="0")


def test_dynamic_quantization():
    data = [(floats(BYTES), Y)], [(floats(OTHER), Y)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear})
        outputs = [model(x) for ((x, _),) in data]
        found = r.score(model, *data, layer="3")
        assert found.value == pytest.approx(r.resque_dist(*outputs, Y, Y).value, rel=1e-12)
        assert r.score(model, *data, indices="arm", layers=["1", "3"]).value > 0
        default = r.score(model, *data)
        assert default.layer == "3:input"
        assert default.value == r.score(model, *data, layer="3:input").value
