"""Images encoded with Pillow, independently of the code under test."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def png(array: NDArray[np.generic], **options: object) -> bytes:
    """Encode an array as PNG with Pillow."""
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", **options)
    return buffer.getvalue()
