"""Evaluations in which several samples are about one image; see `common.adapt.sharing`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from common.adapt.encoder import RoutedEncoder
from common.adapt.sharing import ComputedRows, SameRows, same_rows
from common.training.runtime import Runtime


class SharedImages:
    """What depends on an image alone is computed once for all samples of a batch about it.

    Attributes:
        on: else it is computed for every sample.
    """

    def __init__(self, on: bool = True, say: Callable[[str], None] = lambda line: None) -> None:
        """`say` is told, once for every part of the data, how often it was computed."""
        self.on, self._say = on, say
        self._told: set[str] = set()

    def tell(self, part: str, line: str) -> None:
        """Say a line about a part of the data, the first time."""
        if part not in self._told:
            self._told.add(part)
            self._say(f"{part}: {line}")


def together(image_ids: Sequence[str]) -> list[int]:
    """Places of samples, in their order but those about one image together."""
    first: dict[str, int] = {}
    for place, image in enumerate(image_ids):
        first.setdefault(image, place)
    return sorted(range(len(image_ids)), key=lambda place: first[image_ids[place]])


class SharedEvaluation:
    """One evaluation of a part of the data, by one process."""

    def __init__(self, images: SharedImages, runtime: Runtime, model: nn.Module) -> None:
        """Nothing is shared in a run that records its passes (`runtime`); nothing, nor the order of
        the samples, is changed for a model whose answers depend on places in a batch."""
        self._images, self._runtime = images, runtime
        encoder = next((m for m in model.modules() if isinstance(m, RoutedEncoder)), None)
        self._on = images.on and not (encoder is not None and encoder.by_place)
        self._seen: set[str] = set()
        self._rows = 0
        self.computed = ComputedRows()

    def order(self, image_ids: Sequence[str]) -> list[int] | None:
        """Places of samples in the order in which they are asked; None: as they are."""
        return together(image_ids) if self._on else None

    @contextmanager
    def within(self, image_ids: Sequence[str]) -> Iterator[None]:
        """A pass of a model over a batch; image_ids of its B rows."""
        same = SameRows.of(image_ids, self._runtime.device)
        shares = self._on and self._runtime.recorder is None
        computed = ComputedRows()
        with same_rows(computed, **({"vision": same} if shares else {})):
            yield
        self.computed.times += computed.times  # not of a pass that failed
        self.computed.rows += computed.rows
        self._rows += len(image_ids)
        self._seen.update(image_ids)

    def tell(self, part: str, things: str) -> None:
        """Say what was shared by all processes, if anything could be; all of them call it.

        Args:
            part: name of the data.
            things: what its samples are called.
        """
        if not self._images.on:
            return
        counts = (self._rows, len(self._seen), self.computed.times, self.computed.rows)
        rows, seen, times, computed = map(
            sum, zip(*self._runtime.world.gather(counts), strict=True)
        )
        if seen == rows:
            return
        about = f"{rows:,} {things} about {seen:,} images"
        if not self._on:
            why = "published spans belong to places in a batch"
            self._images.tell(part, f"{about}, each by itself: {why}")
        elif self._runtime.recorder is not None:
            self._images.tell(
                part,
                f"{about}, each by itself: this run records passes as CUDA graphs, whose shapes "
                "may not depend on which images a batch is about (--graph off)",
            )
        elif computed:
            share = times / computed
            line = f"{about}; what depends on the image alone was computed for {share:.0%} of them"
            self._images.tell(part, line)
