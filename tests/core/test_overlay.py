"""Overlays tint classes, mark borders and add a legend below the image."""

import numpy as np
import pytest

from droneseg.core.classes import colours
from droneseg.core.errors import ShapeMismatchError
from droneseg.core.overlay import blend, draw_overlay
from droneseg.core.prediction import class_fractions


def test_blend_tints_classes_and_draws_borders_in_full_colour() -> None:
    image = np.full((4, 6, 3), 100, np.uint8)
    mask = np.array([[2, 2, 2, 5, 5, 5]] * 4, np.uint8)
    blended = blend(image, mask, opacity=0.5)
    assert blended[1, 1].tolist() == ((100 + colours()[2].astype(int)) // 2).tolist()
    assert blended[1, 3].tolist() == colours()[5].tolist()


def test_blend_refuses_a_mask_of_another_size() -> None:
    with pytest.raises(ShapeMismatchError, match="6x4, mask is 4x4"):
        blend(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 4), np.uint8))


def test_legend_below_the_image_shows_occurring_classes() -> None:
    image = np.zeros((60, 300, 3), np.uint8)
    mask = np.full((60, 300), 3, np.uint8)
    drawn = draw_overlay(image, mask, class_fractions(mask))
    legend = drawn[60:].reshape(-1, 3)
    assert drawn.shape[1:] == (300, 3)
    assert (legend == colours()[3]).all(axis=1).any()
    assert not (legend == colours()[1]).all(axis=1).any()
