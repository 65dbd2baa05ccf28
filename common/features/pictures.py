"""Reading pictures: every picture that any part looks at comes through `read_picture`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from common.errors import DataError


def read_picture(file: Path) -> Image.Image:
    """A picture file as RGB.

    Raises:
        DataError: missing, no picture, damaged, or too large to be one; named.
    """
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except UnidentifiedImageError:
        raise DataError(f"{file}: not a picture in a known format (PNG, JPEG, …)") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file}: the picture cannot be read: {reason}") from None
