"""Pictures encoded with Pillow alone, independent of the code under test."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def png(array: NDArray[np.generic], **options: object) -> bytes:
    """Encode an array with Pillow, independent of the code under test."""
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", **options)
    return buffer.getvalue()
