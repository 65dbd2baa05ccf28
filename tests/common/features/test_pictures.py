"""Pictures are read as viewers show them, or refused with the reason; what was changed is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from common.errors import DataError
from common.features.pictures import read_picture


def disc(mode: str, background: object, ink: object) -> Image.Image:
    image = Image.new(mode, (40, 30), background)
    ImageDraw.Draw(image).ellipse((10, 5, 30, 25), fill=ink)
    return image


def colours(picture: Image.Image) -> set[tuple[int, ...]]:
    assert picture.mode == "RGB"
    return set(map(tuple, np.asarray(picture).reshape(-1, 3).tolist()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    """A red corner at the top left of what is shown."""
    shown = Image.new("RGB", (40, 30), "white")
    shown.paste("red", (0, 0, 10, 10))
    turns = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = shown
    for turn in turns.get(orientation, []):
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / "a.png", exif=exif.tobytes())
    notes: list[str] = []
    found = read_picture(tmp_path / "a.png", notes)
    assert np.array_equal(np.asarray(found), np.asarray(shown))
    assert bool(notes) == (orientation > 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_places_are_white_and_a_black_shape_stays(tmp_path: Path, mode: str) -> None:
    disc("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)).convert(mode).save(tmp_path / "a.png")
    notes: list[str] = []
    assert colours(read_picture(tmp_path / "a.png", notes)) == {(0, 0, 0), (255, 255, 255)}
    assert notes == ["its transparent places are white"]
    disc("RGBA", (9, 9, 9, 255), (0, 200, 0, 255)).save(tmp_path / "b.png")
    notes.clear()
    assert colours(read_picture(tmp_path / "b.png", notes)) == {(9, 9, 9), (0, 200, 0)}
    assert not notes


def test_grey_of_sixteen_bits_is_scaled_and_not_cut(tmp_path: Path) -> None:
    grey = np.asarray(disc("L", 235, 60)).astype(np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "a.png")
    notes: list[str] = []
    assert colours(read_picture(tmp_path / "a.png", notes)) == {(235,) * 3, (60,) * 3}
    assert notes == ["its 16-bit grey is scaled to 8 bits"]


@pytest.mark.parametrize(("mode", "name"), [("CMYK", "a.jpg"), ("L", "a.png"), ("1", "a.png")])
def test_other_kinds_keep_their_shape(tmp_path: Path, mode: str, name: str) -> None:
    disc("L", 255, 0).convert(mode).save(tmp_path / name)
    found = np.asarray(read_picture(tmp_path / name)).mean(-1)
    assert found[15, 20] < 60 and found[1, 1] > 200


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [disc("RGB", "white", "red"), disc("RGB", "white", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    notes: list[str] = []
    found = np.asarray(read_picture(tmp_path / "a.gif", notes))[15, 20]
    assert found[0] > 200 > found[2] and notes == ["the first of its 2 frames"]


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "text.png").write_text("no picture")
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "float.tiff")
    disc("RGB", "white", "red").save(tmp_path / "large.png")
    for name, reason in (
        ("text.png", "not a picture"),
        ("none.png", "no such file"),
        ("float.tiff", "grey values go from 0 to 1"),
        (".", "cannot be read"),
    ):
        with pytest.raises(DataError, match=reason) as error:
            read_picture(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"large.png: too large for a picture"):
        read_picture(tmp_path / "large.png")
