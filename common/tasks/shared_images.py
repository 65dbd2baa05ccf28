"""Evaluations in which several samples are about one image; see `common.adapt.sharing`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from common.adapt.sharing import Computed, SameRows, same_rows
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

    def order(self, image_ids: Sequence[str]) -> list[int]:
        """Places of samples, in their order but those about one image together."""
        places = range(len(image_ids))
        if not self.on:
            return list(places)
        first: dict[str, int] = {}
        for place in places:
            first.setdefault(image_ids[place], place)
        return sorted(places, key=lambda place: first[image_ids[place]])

    def tell(self, part: str, line: str) -> None:
        """Say a line about a part of the data, the first time."""
        if part not in self._told:
            self._told.add(part)
            self._say(f"{part}: {line}")


class SharedEvaluation:
    """One evaluation of a part of the data, by one process."""

    def __init__(self, images: SharedImages, runtime: Runtime) -> None:
        """Passes that are recorded (`runtime`) share nothing."""
        self._images, self._runtime = images, runtime
        self._seen: set[str] = set()
        self._rows = 0
        self.computed = Computed()

    @contextmanager
    def within(self, image_ids: Sequence[str]) -> Iterator[None]:
        """A pass of a model over a batch; image_ids of its B rows."""
        same = SameRows.of(image_ids, self._runtime.device)
        recorded = self._runtime.recorder is not None
        streams = {"vision": same} if self._images.on and not recorded else {}
        with same_rows(self.computed, **streams):
            yield
        self._rows += len(image_ids)
        self._seen.update(image_ids)

    def tell(self, part: str, things: str) -> None:
        """Say what was shared, if anything could be.

        Args:
            part: name of the data.
            things: what its samples are called.
        """
        if not self._images.on or len(self._seen) == self._rows:
            return
        about = f"{self._rows:,} {things} about {len(self._seen):,} images"
        if self._runtime.recorder is not None:
            self._images.tell(
                part,
                f"{about}, each by itself: passes are recorded as CUDA graphs, whose shapes may "
                "not depend on which images a batch is about (--graph off)",
            )
        elif self.computed.rows:
            share = self.computed.times / self.computed.rows
            line = f"{about}; what depends on the image alone was computed for {share:.0%} of them"
            self._images.tell(part, line)
