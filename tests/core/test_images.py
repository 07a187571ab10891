"""All supported images decode to upright RGB; broken ones raise an error."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from droneseg.core.errors import BrokenImageError, ImageTooLargeError, UnsupportedImageError
from droneseg.core.images import (
    decode_image,
    is_plain_rgb_png,
    load,
    open_image,
    pillow_to_rgb,
    read_image,
    require_rgb,
)

RGB = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def encode(picture: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format=image_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF"])
def test_decode_returns_the_pixels_of_lossless_formats(image_format: str) -> None:
    decoded = decode_image(encode(Image.fromarray(RGB), image_format))
    assert np.array_equal(decoded, RGB)
    assert decoded.flags.c_contiguous


def test_decode_applies_exif_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    decoded = decode_image(encode(Image.fromarray(RGB), exif=exif))
    assert np.array_equal(decoded, np.rot90(RGB, k=-1))


def test_decode_repeats_grey() -> None:
    assert np.array_equal(decode_image(encode(Image.fromarray(RGB[..., 0]))), np.repeat(RGB[..., :1], 3, axis=2))


def test_decode_scales_16_bit_grey() -> None:
    deep = np.array([[0, 257, 65535, 32896]], dtype=np.uint16)
    assert decode_image(encode(Image.fromarray(deep)))[0, :, 0].tolist() == [0, 1, 255, 128]


def test_decode_turns_transparent_pixels_black_and_keeps_opaque_ones() -> None:
    rgba = np.dstack([RGB, np.where(np.arange(32) < 16, 255, 0).astype(np.uint8) * np.ones((24, 1), np.uint8)])
    decoded = decode_image(encode(Image.fromarray(rgba)))
    assert np.array_equal(decoded[:, :16], RGB[:, :16])
    assert not decoded[:, 16:].any()


def test_decode_converts_cmyk_jpeg() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixel = decode_image(encode(red, "JPEG", quality=95))[8, 8]
    assert pixel[0] > 240
    assert pixel[1:].max() < 15


def test_decode_resolves_a_palette() -> None:
    picture = Image.new("P", (3, 2), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    assert decode_image(encode(picture))[0, 0].tolist() == [10, 20, 30]


def test_decode_refuses_pixel_types_without_a_fixed_range() -> None:
    with pytest.raises(UnsupportedImageError, match="'F'"):
        decode_image(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_decode_refuses_truncated_data(image_format: str, share: float) -> None:
    data = encode(Image.fromarray(RGB), image_format)
    with pytest.raises((BrokenImageError, UnsupportedImageError)):
        decode_image(data[: int(len(data) * share)])


def test_decode_refuses_a_png_with_flipped_bytes() -> None:
    data = bytearray(encode(Image.fromarray(RGB)))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BrokenImageError):
        decode_image(bytes(data))


@pytest.mark.parametrize(("data", "error"), [(b"", BrokenImageError), (b"not an image", UnsupportedImageError)])
def test_decode_refuses_data_that_is_not_an_image(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        decode_image(data)


def test_decode_refuses_an_unsupported_format() -> None:
    with pytest.raises(UnsupportedImageError, match="supported formats are JPEG"):
        decode_image(encode(Image.fromarray(RGB), "GIF"))


def test_size_limit_is_checked_in_the_header() -> None:
    data = encode(Image.fromarray(RGB))[:60]  # header only: decoding it would fail otherwise
    with pytest.raises(ImageTooLargeError, match=r"32x24; the limit is 700 pixels\. Raise DRONESEG_MAX_PIXELS"):
        decode_image(data, max_pixels=700)


def test_read_image_error_starts_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"junk")
    with pytest.raises(UnsupportedImageError, match=r"a\.png: Unknown image format"):
        read_image(tmp_path / "a.png")


def test_only_upright_8_bit_rgb_png_is_plain() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(RGB)
    cases = {
        encode(picture): True,
        encode(picture, "BMP"): False,
        encode(picture, exif=exif): False,
        encode(picture.convert("L")): False,
        encode(picture.convert("RGBA")): False,
        encode(picture, transparency=(0, 0, 0)): False,
    }
    for data, plain in cases.items():
        opened = open_image(data)
        assert is_plain_rgb_png(opened) is plain
        load(opened)


def test_16_bit_rgb_png_is_not_plain() -> None:
    cv2 = pytest.importorskip("cv2")
    ok, data = cv2.imencode(".png", RGB.astype(np.uint16) * 257)
    assert ok
    assert not is_plain_rgb_png(open_image(data.tobytes()))
    assert np.array_equal(decode_image(data.tobytes()), RGB[..., ::-1])


def test_pillow_image_becomes_the_same_pixels_as_its_file() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for picture, image_format, options in (
        (Image.fromarray(RGB), "PNG", {"exif": exif}),
        (Image.fromarray(RGB), "TIFF", {"exif": exif}),
        (Image.fromarray(RGB[..., 0]), "PNG", {}),
        (Image.fromarray(np.dstack([RGB, RGB[..., 0]])), "PNG", {}),
        (Image.fromarray(RGB).quantize(8), "PNG", {}),
        (Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), "PNG", {}),
    ):
        data = encode(picture, image_format, **options)
        opened = Image.open(BytesIO(data))
        size = opened.size
        assert np.array_equal(pillow_to_rgb(opened), decode_image(data)), (picture.mode, image_format)
        assert opened.size == size, "the caller's image is not rotated"


def test_pillow_image_must_fit_the_limit_and_have_a_mode_with_a_range() -> None:
    with pytest.raises(ImageTooLargeError, match="32x24"):
        pillow_to_rgb(Image.fromarray(RGB), max_pixels=10)
    with pytest.raises(UnsupportedImageError, match="'F'"):
        pillow_to_rgb(Image.new("F", (4, 4)))
    with pytest.raises(BrokenImageError, match="truncated"):
        pillow_to_rgb(Image.open(BytesIO(encode(Image.fromarray(RGB))[:-700])))


@pytest.mark.parametrize(
    ("image", "error", "remedy"),
    [
        ("photo.png", TypeError, "got str"),
        (RGB.tolist(), TypeError, "got list"),
        (RGB.astype(float) / 255, TypeError, r"got float64 of shape \(24, 32, 3\).*0-255"),
        (RGB.astype(np.int64), TypeError, "got int64"),
        (RGB[..., 0], ValueError, r"got uint8 of shape \(24, 32\).*numpy.stack\(\[image\] \* 3, axis=-1\)"),
        (RGB[..., :1], ValueError, r"numpy.repeat\(image, 3, axis=2\)"),
        (np.dstack([RGB, RGB[..., 0]]), ValueError, r"\(24, 32, 4\).*image\[..., :3\]"),
        (RGB.transpose(2, 0, 1), ValueError, r"\(3, 24, 32\).*image.transpose\(1, 2, 0\)"),
        (RGB[None], ValueError, "one by one"),
        (RGB[:0], ValueError, r"\(0, 32, 3\).*with pixels"),
        (RGB[..., :2], ValueError, "three channels"),
    ],
)
def test_only_rgb_arrays_pass_and_the_error_says_how_to_convert(
    image: object, error: type[Exception], remedy: str
) -> None:
    with pytest.raises(error, match=remedy):
        require_rgb(image)


def test_rgb_array_passes_unchanged_and_a_flipped_view_becomes_contiguous() -> None:
    assert require_rgb(RGB) is RGB
    flipped = require_rgb(RGB[..., ::-1])
    assert flipped.flags.c_contiguous
    assert np.array_equal(flipped, RGB[..., ::-1])


@pytest.mark.parametrize("remedied", [np.stack([RGB[..., 0]] * 3, axis=-1), np.repeat(RGB[..., :1], 3, axis=2)])
def test_remedies_of_the_errors_give_images(remedied: np.ndarray) -> None:
    assert require_rgb(remedied).shape == RGB.shape
