"""Photograph, truth and prediction side by side."""

from collections.abc import Sequence

import numpy as np

from droneseg.core.images import Image
from droneseg.core.masks import Mask
from droneseg.core.overlay import blend, draw_overlay
from droneseg.core.prediction import class_fractions


def contact_sheet(rows: Sequence[tuple[Image, Mask, Mask]], *, caption: str) -> Image:
    """Draw one row per photograph, with one legend for all below.

    Args:
        rows: Photograph, shape (H, W, 3), true and predicted mask, shape (H, W) each; all of one size.
        caption: A line below the legend.

    Returns:
        RGB, shape (rows x H + legend, 3 x W, 3), dtype uint8.
    """
    sheet = np.vstack([np.hstack([image, blend(image, truth), blend(image, mask)]) for image, truth, mask in rows])
    shares = class_fractions(np.hstack([np.ravel(mask) for _, _, mask in rows]))
    below = draw_overlay(
        sheet,
        np.zeros(sheet.shape[:2], np.uint8),
        shares,
        caption=f"photograph | truth | prediction     {caption}",
    )
    return np.vstack([sheet, below[sheet.shape[0] :]])
