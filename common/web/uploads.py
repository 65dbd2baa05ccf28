"""Pictures from a browser: bounded before they are decoded, and named as the user knows them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from common.errors import ConfigError, DataError
from common.features.pictures import decode_picture

MEBI, MEGA = 2**20, 10**6


@dataclass(frozen=True)
class Limits:
    """What is taken from a browser.

    Attributes:
        megabytes: of a file, in units of 2^20 bytes.
        megapixels: of a picture, width times height in units of 10^6.
        characters: of a question.
    """

    megabytes: float = 10.0
    megapixels: float = 25.0
    characters: int = 500

    def __post_init__(self) -> None:
        for name in ("megabytes", "megapixels"):
            value = getattr(self, name)
            if not 0 < value <= 1000:
                raise ConfigError(f"--max-{name} {value:g}: give a number above 0, up to 1000")

    @property
    def bytes(self) -> int:
        return int(self.megabytes * MEBI)

    @property
    def pixels(self) -> int:
        return int(self.megapixels * MEGA)


def read_upload(path: Path, name: str, limits: Limits) -> tuple[Image.Image, list[str]]:
    """A picture that was uploaded, as RGB, and what the user should know of it.

    Args:
        path: where it is.
        name: that the user knows it by.
        limits: of its size; pixels are counted before any is decoded.

    Raises:
        DataError: too large, no picture, or a damaged one.
    """
    size = path.stat().st_size
    if size > limits.bytes:
        raise DataError(
            f"{name}: {size / MEBI:.1f} MiB; at most {limits.megabytes:g} MiB are taken "
            "(--max-megabytes): scale the picture or save it as JPEG"
        )
    notes: list[str] = []
    with open(path, "rb") as content:
        found = _pixels(path)
        if found is not None and found[0] * found[1] > limits.pixels:
            raise DataError(
                f"{name}: {found[0]} x {found[1]} pixels are {found[0] * found[1] / MEGA:.1f} "
                f"megapixels; at most {limits.megapixels:g} are taken (--max-megapixels): scale "
                "the picture first"
            )
        picture = decode_picture(content, name, notes)
    return picture, [f"{name}: {note}" for note in notes]


def _pixels(path: Path) -> tuple[int, int] | None:
    """Width and height by the header; None where `decode_picture` says what is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.size
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError):
        return None
