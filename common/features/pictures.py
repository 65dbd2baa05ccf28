"""Reading pictures: every picture that any part looks at comes through here.

A picture is read as viewers show it: turned as its EXIF data say, transparent places white, 16-bit
grey scaled to 8 bits, the first frame of an animation. What was changed can be said to the user.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from common.errors import DataError

SIXTEEN_BITS = 65535


def read_picture(file: Path, notes: list[str] | None = None) -> Image.Image:
    """A picture file as RGB.

    Args:
        file: of any format that PIL knows.
        notes: receives what was changed, for the user to know.

    Raises:
        DataError: missing, no picture, damaged, or too large to be one; named.
    """
    try:
        with open(file, "rb") as content:
            return decode_picture(content, str(file), notes)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except OSError as error:
        raise DataError(f"{file}: the picture cannot be read: {error.strerror}") from None


def decode_picture(content: BinaryIO, where: str, notes: list[str] | None = None) -> Image.Image:
    """The content of a picture file as RGB; `where` names it in errors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(content) as image:
                return _as_shown(image, notes if notes is not None else [])
    except UnidentifiedImageError:
        raise DataError(f"{where}: not a picture in a known format (PNG, JPEG, …)") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{where}: too large for a picture ({error}): scale it first") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{where}: the picture cannot be read: {reason}: it is damaged or cut off"
        ) from None


def _as_shown(image: Image.Image, notes: list[str]) -> Image.Image:
    if getattr(image, "n_frames", 1) > 1:
        notes.append(f"the first of its {getattr(image, 'n_frames', 1)} frames")
        image.seek(0)
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        notes.append("turned as its EXIF orientation says")
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey(image, notes)
    if not image.has_transparency_data:
        return image.convert("RGB")
    coloured = image.convert("RGBA")
    if coloured.getchannel("A").getextrema() != (255, 255):
        notes.append("its transparent places are white")
    white = Image.new("RGBA", coloured.size, "white")
    return Image.alpha_composite(white, coloured).convert("RGB")


def _grey(image: Image.Image, notes: list[str]) -> Image.Image:
    """Grey of more than 8 bits."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > SIXTEEN_BITS:
        raise ValueError(
            f"its grey values go from {values.min():g} to {values.max():g}, known are 8 and 16 "
            "bits; save it with 8 bits"
        )
    notes.append("its 16-bit grey is scaled to 8 bits")
    return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
