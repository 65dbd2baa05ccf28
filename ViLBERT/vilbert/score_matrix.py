"""The scores of all texts with all images, on disk: no more than a block of them in memory.

scores.npy      (T, I) float32
done.npy        (T,) bool: rows that are whole
settings.json   what the scores are of
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigError, DataError
from common.files import write_json
from common.reading import read_json, short

SCORES, DONE, SETTINGS = "scores.npy", "done.npy", "settings.json"


class ScoreMatrix:
    """Scores that are filled in row by row; a program that was stopped goes on with the others.

    Attributes:
        folder: of the files.
        texts, images: T and I.
    """

    def __init__(self, folder: Path, texts: int, images: int, settings: Mapping[str, Any]) -> None:
        """Open the matrix of a folder, or make one.

        Args:
            folder: of the files.
            texts, images: T and I.
            settings: what the scores are of, for JSON: model, data, head.

        Raises:
            ConfigError: the folder holds scores of other settings; names the first that differs.
            DataError: its files are damaged.
        """
        self.folder, self.texts, self.images = folder, texts, images
        wanted = {"texts": texts, "images": images, **settings}
        if (folder / SETTINGS).exists():
            self._check(wanted)
            self._scores, self._done = self._open(SCORES), self._open(DONE)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            for name, shape, kind in ((SCORES, (texts, images), "<f4"), (DONE, (texts,), "?")):
                np.lib.format.open_memmap(folder / name, "w+", np.dtype(kind), shape).flush()
            self._scores, self._done = self._open(SCORES), self._open(DONE)
            write_json(folder / SETTINGS, wanted)  # last: without it nothing is there
        shapes = {SCORES: (texts, images), DONE: (texts,)}
        for name, found in ((SCORES, self._scores), (DONE, self._done)):
            if found.shape != shapes[name]:
                raise DataError(
                    f"{folder / name}: {found.shape} scores, expected {shapes[name]}: remove "
                    f"{folder} to compute them again"
                )

    def _check(self, wanted: Mapping[str, Any]) -> None:
        found = read_json(self.folder / SETTINGS)
        if not isinstance(found, dict):
            raise DataError(f"{self.folder / SETTINGS}: {short(found)}: remove {self.folder}")
        for key in {**wanted, **found}:
            if wanted.get(key) != found.get(key):
                raise ConfigError(
                    f"{self.folder}: holds scores of other settings: {key} is "
                    f"{short(found.get(key))} there, {short(wanted.get(key))} here; choose another "
                    "folder, or remove this one"
                )

    def _open(self, name: str) -> np.ndarray:
        path = self.folder / name
        try:
            np.load(path, mmap_mode="r")  # to write would fill up a file that is cut off
            return np.load(path, mmap_mode="r+")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: cannot be read ({short(str(error))}): remove {self.folder} to compute "
                "the scores again"
            ) from None

    def missing(self) -> list[int]:
        """The texts that have no scores yet."""
        places: list[int] = np.flatnonzero(~self._done).tolist()
        return places

    def write(self, places: Sequence[int], scores: Tensor) -> None:
        """Keep the scores (t, I) of some texts; they are on disk when this returns.

        Raises:
            DataError: scores that are not finite.
        """
        if not bool(torch.isfinite(scores).all()):
            row = int((~torch.isfinite(scores)).any(1).nonzero()[0])
            raise DataError(f"text {places[row]}: a score that is not finite")
        self._scores[list(places)] = scores.float().cpu().numpy()
        _flush(self._scores)
        self._done[list(places)] = True
        _flush(self._done)

    def blocks(self, size: int) -> Iterator[tuple[list[int], Tensor]]:
        """Places of texts and their scores (at most `size`, I), all of them in order.

        Raises:
            DataError: some have no scores yet.
        """
        if missing := self.missing():
            raise DataError(f"{self.folder}: {len(missing)} of {self.texts} texts have no scores")
        for start in range(0, self.texts, size):
            rows = np.array(self._scores[start : start + size])
            yield list(range(start, start + len(rows))), torch.from_numpy(rows)


def _flush(values: np.ndarray) -> None:
    assert isinstance(values, np.memmap)
    values.flush()
