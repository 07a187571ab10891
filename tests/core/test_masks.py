"""Masks decode exactly by colour and encode as palette PNG with ids and colours."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import BrokenImageError, InvalidIdsError, MaskError, UnknownColoursError
from droneseg.core.masks import class_colours, decode_colours, decode_ids, encode_grey_ids, encode_mask, read_mask
from support.images import png

COLOURS = class_colours(DEFAULT_CLASSES)
IDS = np.random.default_rng(2).integers(0, 6, (20, 30)).astype(np.uint8)


def kaggle_palette_png(ids: np.ndarray) -> bytes:
    """Build the Kaggle form: palette index = id - 1, a grey ramp behind the five colours."""
    picture = Image.fromarray((ids - 1).astype(np.uint8))
    ramp = [value for grey in range(5, 16) for value in (grey, grey, grey)]
    picture.putpalette([channel for entry in DEFAULT_CLASSES.foreground for channel in entry.colour] + ramp)
    buffer = BytesIO()
    picture.save(buffer, format="PNG", bits=4)
    return buffer.getvalue()


def test_class_table_has_the_documented_ids_names_and_colours() -> None:
    assert [(c.id, c.name, c.colour) for c in DEFAULT_CLASSES] == [
        (0, "background", (0, 0, 0)),
        (1, "obstacles", (155, 38, 182)),
        (2, "water", (14, 135, 204)),
        (3, "soft-surfaces", (124, 252, 0)),
        (4, "moving-objects", (255, 20, 147)),
        (5, "landing-zones", (169, 169, 169)),
    ]


def test_rgb_mask_is_decoded_by_colour() -> None:
    assert np.array_equal(decode_colours(png(DEFAULT_CLASSES.colours()[IDS]), COLOURS)[0], IDS)


def test_palette_mask_is_decoded_by_colour_not_by_index() -> None:
    ids = np.clip(IDS, 1, 5)
    assert np.array_equal(decode_colours(kaggle_palette_png(ids), COLOURS)[0], ids)


def test_mask_with_opaque_alpha_is_accepted_and_transparent_refused() -> None:
    opaque = np.dstack([DEFAULT_CLASSES.colours()[IDS], np.full(IDS.shape, 255, np.uint8)])
    assert np.array_equal(decode_colours(png(opaque), COLOURS)[0], IDS)
    opaque[3, 4, 3] = 128
    with pytest.raises(MaskError, match="transparent"):
        decode_colours(png(opaque), COLOURS)


def test_unknown_colours_are_listed_with_count_and_position() -> None:
    rgb = DEFAULT_CLASSES.colours()[IDS]
    rgb[5, 7] = rgb[9, 2] = (1, 2, 3)
    rgb[11, 0] = (9, 9, 9)
    with pytest.raises(
        UnknownColoursError,
        match=r"2 unknown colours: \(1, 2, 3\) on 2 pixels, first at x=7 y=5; \(9, 9, 9\) on 1 pixels, first at x=0",
    ):
        decode_colours(png(rgb), COLOURS)


def test_unknown_colours_become_background_only_if_requested() -> None:
    rgb = DEFAULT_CLASSES.colours()[IDS]
    rgb[5, 7] = (1, 2, 3)
    mask, replaced = decode_colours(png(rgb), COLOURS, unknown="background")
    expected = IDS.copy()
    expected[5, 7] = 0
    assert np.array_equal(mask, expected)
    assert [(item.colour, item.pixels) for item in replaced] == [((1, 2, 3), 1)]


def test_unknown_palette_colours_are_found() -> None:
    picture = Image.fromarray(np.array([[0, 6]], np.uint8))
    picture.putpalette([*DEFAULT_CLASSES[1].colour, *([0] * 15), 6, 6, 6])
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    with pytest.raises(UnknownColoursError, match=r"\(6, 6, 6\) on 1 pixels, first at x=1 y=0"):
        decode_colours(buffer.getvalue(), COLOURS)


def test_grey_and_jpeg_masks_are_refused() -> None:
    with pytest.raises(MaskError, match="must be a palette or RGB image"):
        decode_colours(png(IDS), COLOURS)
    buffer = BytesIO()
    Image.fromarray(DEFAULT_CLASSES.colours()[IDS]).save(buffer, format="JPEG")
    with pytest.raises(MaskError, match="JPEG"):
        decode_colours(buffer.getvalue(), COLOURS)


def test_truncated_mask_is_refused() -> None:
    data = png(DEFAULT_CLASSES.colours()[IDS])
    with pytest.raises(BrokenImageError):
        decode_colours(data[: len(data) // 2], COLOURS)


def test_encoded_mask_contains_ids_and_class_colours() -> None:
    opened = Image.open(BytesIO(encode_mask(IDS, DEFAULT_CLASSES)))
    assert opened.mode == "P"
    assert np.array_equal(np.asarray(opened), IDS)
    assert np.array_equal(np.asarray(opened.convert("RGB")), DEFAULT_CLASSES.colours()[IDS])


@pytest.mark.parametrize("only", range(6))
def test_encoded_mask_of_one_class_decodes_by_colour_and_by_id(only: int) -> None:
    mask = np.full((7, 9), only, np.uint8)
    assert np.array_equal(decode_ids(encode_mask(mask, DEFAULT_CLASSES), DEFAULT_CLASSES), mask)
    assert np.array_equal(decode_colours(encode_mask(mask, DEFAULT_CLASSES), COLOURS)[0], mask)


def test_encoded_grey_ids_decode_to_the_same_mask() -> None:
    opened = Image.open(BytesIO(encode_grey_ids(IDS)))
    assert opened.mode == "L"
    assert np.array_equal(np.asarray(opened), IDS)
    assert np.array_equal(decode_ids(encode_grey_ids(IDS), DEFAULT_CLASSES), IDS)


def test_ids_outside_the_class_table_are_refused() -> None:
    wrong = IDS.copy()
    wrong[0, 0] = 6
    with pytest.raises(InvalidIdsError, match="6 on 1 pixels"):
        decode_ids(png(wrong), DEFAULT_CLASSES)
    with pytest.raises(InvalidIdsError, match="6"):
        encode_mask(wrong, DEFAULT_CLASSES)
    with pytest.raises(MaskError, match="colour mask"):
        decode_ids(png(DEFAULT_CLASSES.colours()[IDS]), DEFAULT_CLASSES)


def test_labels_keep_the_ignore_label(tmp_path: Path) -> None:
    label = IDS.copy()
    label[0, 0] = 6
    (tmp_path / "case.png").write_bytes(png(label))
    assert np.array_equal(read_mask(tmp_path / "case.png", "labels", DEFAULT_CLASSES), label)
    with pytest.raises(InvalidIdsError, match="6 on 1 pixels"):
        read_mask(tmp_path / "case.png", "ids", DEFAULT_CLASSES)
    label[0, 0] = 7
    (tmp_path / "case.png").write_bytes(png(label))
    with pytest.raises(InvalidIdsError, match="7 on 1 pixels"):
        read_mask(tmp_path / "case.png", "labels", DEFAULT_CLASSES)


def test_id_mask_with_contradicting_palette_is_refused() -> None:
    ids = np.array([[1, 2], [3, 5]], np.uint8)
    kaggle = kaggle_palette_png(ids)
    with pytest.raises(MaskError, match="ambiguous"):
        decode_ids(kaggle, DEFAULT_CLASSES)
    assert np.array_equal(decode_colours(kaggle, COLOURS)[0], ids)
    assert np.array_equal(decode_ids(encode_mask(ids, DEFAULT_CLASSES), DEFAULT_CLASSES), ids)
