"""Overlays tint classes, mark borders and add a legend below the image."""

import numpy as np
import pytest

from droneseg.core.camera import Ground, WarningCode
from droneseg.core.classes import DEFAULT_CLASSES, ClassTable, SegmentationClass
from droneseg.core.errors import ShapeMismatchError
from droneseg.core.overlay import blend, describe_ground, draw_overlay, draw_prediction
from droneseg.core.prediction import Prediction, class_fractions

WARNING_INK = np.array((250, 204, 21))
SENTENCE = "The image shows less detail than the model was trained on; small objects can be missed."


def warning_ink(drawn: np.ndarray, height: int) -> np.ndarray:
    """Return which pixels below the image have about the colour of warnings."""
    return (np.abs(drawn[height:].astype(int) - WARNING_INK) < 60).all(axis=2)


def text_lines(ink: np.ndarray) -> int:
    """Return the number of groups of rows with ink."""
    rows = ink.any(axis=1)
    return int((rows[1:] & ~rows[:-1]).sum() + rows[0])


def overlay(height: int, width: int, *warnings: str) -> np.ndarray:
    """Return the overlay of a black image that shows soft surfaces only."""
    mask = np.full((height, width), 3, np.uint8)
    fractions = class_fractions(mask, DEFAULT_CLASSES)
    return draw_overlay(np.zeros((*mask.shape, 3), np.uint8), mask, DEFAULT_CLASSES, fractions, warnings=warnings)


def test_blend_tints_classes_and_draws_borders_in_full_colour() -> None:
    image = np.full((4, 6, 3), 100, np.uint8)
    mask = np.array([[2, 2, 2, 5, 5, 5]] * 4, np.uint8)
    blended = blend(image, mask, DEFAULT_CLASSES, opacity=0.5)
    assert blended[1, 1].tolist() == ((100 + DEFAULT_CLASSES.colours()[2].astype(int)) // 2).tolist()
    assert blended[1, 3].tolist() == list(DEFAULT_CLASSES.display_colour(5))


def test_landing_zones_are_hatched_and_visible_on_their_grey() -> None:
    image = np.full((48, 48, 3), DEFAULT_CLASSES.colours()[5], np.uint8)
    blended = blend(image, np.full((48, 48), 5, np.uint8), DEFAULT_CLASSES).astype(int)
    tints = np.unique(blended.reshape(-1, 3), axis=0)
    assert len(tints) == 2
    assert (np.abs(tints - DEFAULT_CLASSES.colours()[5]).max(axis=1) > 20).all()
    assert 0.05 < (blended == tints[0]).all(axis=2).mean() < 0.95


def test_blend_refuses_a_mask_of_another_size() -> None:
    with pytest.raises(ShapeMismatchError, match="6x4, mask is 4x4"):
        blend(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 4), np.uint8), DEFAULT_CLASSES)


def test_legend_below_the_image_shows_occurring_classes() -> None:
    drawn = overlay(60, 300)
    legend = drawn[60:].reshape(-1, 3)
    assert drawn.shape[1:] == (300, 3)
    assert (legend == DEFAULT_CLASSES.colours()[3]).all(axis=1).any()
    assert not (legend == DEFAULT_CLASSES.colours()[1]).all(axis=1).any()


def test_the_whole_warning_is_drawn_at_any_width() -> None:
    def draw(height: int, width: int) -> np.ndarray:
        return warning_ink(overlay(height, width, SENTENCE), height)

    wide, narrow = draw(100, 1400), draw(1400, 500)  # the same size of text
    assert text_lines(wide) == 1
    assert text_lines(narrow) >= 3
    assert not narrow[:, -4:].any()
    assert narrow.sum() == pytest.approx(wide.sum(), rel=0.03)


def test_the_text_of_a_large_image_can_be_read_on_a_screen() -> None:
    letters = np.flatnonzero(warning_ink(overlay(2250, 4000, "Hg"), 2250).any(axis=1))
    assert np.ptp(letters) * 1280 / 4000 >= 14, "height of the letters on a screen 1280 pixels wide"


def test_a_prediction_is_drawn_with_its_ground_resolution_and_warnings() -> None:
    mask = np.full((60, 800), 3, np.uint8)

    def draw(*warnings: WarningCode) -> np.ndarray:
        ground = Ground(gsd_m=0.02, gsd_error=0.0, source="argument", warnings=warnings)
        prediction = Prediction(mask, DEFAULT_CLASSES, class_fractions(mask, DEFAULT_CLASSES), 0.9, {}, "aaa", ground)
        return draw_prediction(np.zeros((60, 800, 3), np.uint8), prediction, name="a.jpg")

    assert not warning_ink(draw(), 60).any()
    assert text_lines(warning_ink(draw(WarningCode.OBLIQUE, WarningCode.UNLIKE_TRAINING), 60)) >= 2


@pytest.mark.parametrize(
    ("ground", "words"),
    [
        (Ground(), ""),
        (Ground(gsd_m=0.0172, source="height"), "1.7 cm per pixel (height above ground)"),
        (
            Ground(gsd_m=0.0172, source="height", warnings=(WarningCode.HEIGHT_ABOVE_TAKEOFF,)),
            "1.7 cm per pixel (height above take-off)",
        ),
        (Ground(gsd_m=0.3, source="argument"), "30 cm per pixel (given)"),
        (Ground(gsd_m=10, source="georeference"), "10.0 m per pixel (from the georeference)"),
        (Ground(gsd_m=0.3, source="laser"), "30 cm per pixel (from the laser rangefinder)"),
    ],
)
def test_the_ground_resolution_is_described_with_its_source(ground: Ground, words: str) -> None:
    assert describe_ground(ground) == words


def test_blending_equals_the_weighted_mean_rounded_down() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 500, 3), np.uint8)
    mask = np.repeat(np.array([[4]], np.uint8), 500, axis=1)
    expected = (image * 0.55 + DEFAULT_CLASSES.colours()[4] * 0.45).astype(np.uint8)
    assert np.array_equal(blend(image, mask, DEFAULT_CLASSES), expected)


def test_legend_spells_letters_that_the_font_lacks() -> None:
    def legend(name: str) -> np.ndarray:
        table = ClassTable((DEFAULT_CLASSES[0], SegmentationClass(1, name, (9, 9, 9))))
        mask = np.ones((60, 400), np.uint8)
        return draw_overlay(np.zeros((60, 400, 3), np.uint8), mask, table, {name: 1.0})

    assert (legend("Gebäude Straße naïve 中") == legend("Gebaeude Strasse naive ?")).all()
    assert (legend("Gebaeude") != legend("Gebaeuda")).any()
