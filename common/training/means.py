"""Means over things that are counted batch by batch, on one process or on several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from common.training.distributed import World


class Means:
    """Sums and counts by name; a mean does not depend on how the things fall into batches."""

    def __init__(self, names: Iterable[str]) -> None:
        """Start at nothing.

        Args:
            names: all that will be added, the same on every process.
        """
        names = list(names)
        self._sums, self._counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)

    def add(self, name: str, total: float, count: float) -> None:
        """Add things with this sum."""
        self._sums[name] += total
        self._counts[name] += count

    def join(self, world: World) -> Means:
        """Those of all processes together."""
        joined = Means(self._sums)
        joined._sums, joined._counts = world.sum(self._sums), world.sum(self._counts)
        return joined

    def mean(self, *names: str) -> float | None:
        """Of everything under these names; None where there is nothing."""
        count = sum(self._counts[name] for name in names)
        return sum(self._sums[name] for name in names) / count if count else None

    def shares(self, names: Sequence[str]) -> dict[str, float]:
        """{name: 100 × mean} of those names under which there is something."""
        found = {name: self.mean(name) for name in names}
        return {name: 100 * mean for name, mean in found.items() if mean is not None}
