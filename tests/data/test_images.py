"""Images of every mode, depth and orientation, against the arrays that they were made of."""

import io
import struct
import tarfile

import numpy as np
import pytest
import torch

from resque_ext.data.images import image_decoder
from resque_ext.data.labelled import open_batches
from resque_ext.data.sources import DatasetSource, ImageFolderSource, TarSource

Image = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.filterwarnings("error::UserWarning")

DEEP = np.array([[100, 300, 7], [20_000, 65_535, 0]], np.uint16)
EIGHT = np.array([[1, 77, 255], [200, 3, 0]], np.uint8)
COLOUR = np.stack([EIGHT, EIGHT[::-1], EIGHT[:, ::-1]], axis=2)  # [H, W, 3]


def saved(image, form, **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    data.seek(0)
    return data


def tiff(values, order="<", bits=16, photometric=1, sample_format=1):
    """A TIFF of one strip of grey, written by hand: PIL writes no big-endian one."""
    values = np.asarray(values)
    kind = {1: "u", 2: "i", 3: "f"}[sample_format]
    strip = values.astype(f"{order}{kind}{bits // 8}").tobytes()
    tags = [
        (256, values.shape[1]),
        (257, values.shape[0]),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, values.shape[0]),
        (279, len(strip)),
        (339, sample_format),
    ]
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(strip))
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return io.BytesIO(head + strip + directory)


def grey(file):
    found = image_decoder()(file)
    assert found.shape[0] == 3
    assert found.dtype == torch.float32
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    return found[0].numpy()


@pytest.mark.parametrize(
    "file",
    [
        lambda: saved(Image.fromarray(DEEP), "png"),
        lambda: saved(Image.fromarray(DEEP), "ppm"),
        lambda: saved(Image.fromarray(DEEP), "tiff"),
        lambda: saved(Image.fromarray(DEEP.astype(np.int32)), "tiff"),
        lambda: tiff(DEEP, "<"),
        lambda: tiff(DEEP, ">"),
        lambda: tiff(65_535 - DEEP, "<", photometric=0),  # white is zero
        lambda: tiff(DEEP, "<", bits=32),
        lambda: Image.fromarray(DEEP),
        lambda: Image.fromarray(DEEP.astype(">u2")),
        lambda: Image.fromarray(DEEP.astype(np.int32)),
    ],
)
def test_grey_of_16_bits(file):
    np.testing.assert_allclose(grey(file()), DEEP / 65_535, rtol=0, atol=1e-7)


def test_dark_grey_of_16_bits_is_dark():
    dark = np.array([[0, 100], [3, 255]], np.uint16)
    for file in (saved(Image.fromarray(dark), "png"), saved(Image.fromarray(dark), "ppm")):
        np.testing.assert_allclose(grey(file), dark / 65_535, rtol=0, atol=1e-9)


@pytest.mark.parametrize("order", ["<", ">"])
def test_floats_are_taken_as_they_are(order):
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(grey(tiff(values, order, 32, 1, 3)), values)
    np.testing.assert_array_equal(grey(Image.fromarray(values)), values)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("1", np.repeat((EIGHT > 127)[..., None] * 255, 3, 2)),
        ("L", np.repeat(EIGHT[..., None], 3, 2)),
        ("LA", np.repeat(EIGHT[..., None], 3, 2)),
        ("RGB", COLOUR),
        ("RGBA", COLOUR),
        ("CMYK", COLOUR),
    ],
)
@pytest.mark.parametrize("form", ["tiff", None])
def test_modes_of_8_bits(mode, expected, form):
    if mode in ("1", "L", "LA"):
        image = Image.fromarray((EIGHT > 127) * np.uint8(255) if mode == "1" else EIGHT)
        image = image.convert(mode, dither=Image.Dither.NONE)
    else:
        image = Image.fromarray(COLOUR).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(40)  # half transparent pixels keep their colour
    file = image if form is None else saved(image, form)
    found = image_decoder()(file)
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), expected / 255, atol=1e-7)


@pytest.mark.parametrize("transparency", [None, 1, bytes([255, 0, 128])])
def test_palettes(transparency):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    colours = [10, 20, 30, 200, 100, 50, 0, 255, 7]
    image.putpalette(colours)
    options = {} if transparency is None else {"transparency": transparency}
    found = image_decoder()(saved(image, "png", **options))
    expected = np.array(colours).reshape(3, 3)[[[0, 1], [2, 1]]] / 255
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), expected, atol=1e-7)


def test_colours_of_16_bits_are_read_to_8():
    import zlib

    deep = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], axis=2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    size = struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(rows))
    found = image_decoder()(io.BytesIO(png + chunk(b"IEND", b"")))
    assert np.abs(found.permute(1, 2, 0).numpy() - deep / 65_535).max() <= 1 / 255


# What the pixels of an upright image are in a file with that orientation.
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("form", "deep"),
    [("png", 0), ("png", 1), ("tiff", 0), ("tiff", 1), ("webp", 0), ("jpeg", 0)],
)
def test_orientation(orientation, form, deep):
    big = np.kron(COLOUR, np.ones((16, 16, 1), np.uint8))  # JPEG keeps areas
    upright = DEEP if deep else big
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpeg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}
    found = image_decoder()(saved(stored, form, exif=exif, **options.get(form, {})))
    expected = (DEEP / 65_535)[..., None] if deep else big / 255
    tolerance = 0.02 if form == "jpeg" else 1e-7
    found = found.permute(1, 2, 0).numpy()
    assert found.shape[:2] == upright.shape[:2]
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=tolerance)


def test_damaged_exif_states_no_orientation():
    image = Image.fromarray(COLOUR)
    found = image_decoder()(saved(image, "png", exif=b"Exif\0\0no TIFF header"))
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), COLOUR / 255, atol=1e-7)


REFUSED = [
    (lambda: tiff([[0.5, 1.5]], "<", 32, 1, 3), r"values in \[0, 1\] in an image of mode F"),
    (lambda: tiff([[0.5, np.nan]], "<", 32, 1, 3), r"values in \[0, 1\] in an image of mode F"),
    (lambda: tiff([[-5, 7]], "<", 32, 1, 2), "values from 0 to 65,535 in an image of mode I"),
    (lambda: tiff([[1, 70_000]], "<", 32), "values from 0 to 65,535 .* mode I, found 1 to 70000"),
    (lambda: tiff([[200, 200]], "<", 32), "16-bit values in 32 bits .* mode I, found 200 to 200"),
    (lambda: tiff([[1, 200]], "<", 16, 1, 2), "values without a sign in an image of mode I"),
]


@pytest.mark.parametrize(("file", "message"), REFUSED)
def test_what_does_not_tell_what_white_is_names_file_and_mode(tmp_path, file, message):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.tif").write_bytes(file().read())
    with pytest.raises(ValueError, match=rf"x\.tif: expected {message}"):
        list(open_batches(tmp_path))
    faults = []
    source = ImageFolderSource(tmp_path)
    assert list(source.batches(4, on_fault="skip", faults=faults)) == []
    assert faults[0].source.endswith("x.tif")
    assert "mode" in faults[0].message


def test_every_reader_of_images_decodes_alike(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(np.ascontiguousarray(np.rot90(DEEP))), "png", exif=exif).read()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(data)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, content in (("x.png", data), ("x.cls", b"0")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    expected = torch.from_numpy(DEEP / 65_535).float().expand(1, 3, 2, 3)
    for source in (
        open_batches(tmp_path),
        ImageFolderSource(tmp_path).batches(2),
        TarSource(tmp_path / "x.tar").batches(2),
        DatasetSource([(Image.open(io.BytesIO(data)), 0)]).batches(2),
    ):
        ((x, _),) = source
        assert torch.allclose(x, expected, rtol=0, atol=1e-7)
