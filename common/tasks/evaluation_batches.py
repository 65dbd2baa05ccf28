"""How many samples an evaluation takes at once: a number, or as many as a GPU has memory for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import nn
from tqdm import tqdm

from common.modules.packing import packed_weights
from common.tasks.shared_images import SharedImages
from common.training.batch_order import iterate
from common.training.distributed import World
from common.training.runtime import Runtime

MOST = 16  # times the training batch: beyond it nothing gets faster
Found = TypeVar("Found")


class EvaluationBatches:
    """Divides the samples of evaluations into batches.

    Attributes:
        size: samples of a batch.
        images: what samples about one image share.
    """

    def __init__(
        self,
        size: int,
        training: int | None = None,
        say: Callable[[str], None] = lambda line: None,
        images: SharedImages | None = None,
    ) -> None:
        """Begin with a size.

        Args:
            size: samples of a batch.
            training: samples of a training batch; on a GPU the size is then as many times a power
                of two as there is memory for, at most `MOST` times. It is found in the first
                evaluation: doubled after every batch, until one has no room. None: it is `size`.
            say: told the size that was found.
            images: None: what depends on an image alone is computed once in a batch.
        """
        self.images = images or SharedImages()
        self.size, self._training, self._say = size, training, say
        self._grows: bool | None = None  # None: nothing was evaluated yet
        self._told: int | None = None

    def asked(
        self,
        model: nn.Module,
        runtime: Runtime,
        samples: int,
        name: str,
        progress: bool,
        ask: Callable[[list[int]], Found],
        order: Sequence[int] | None = None,
    ) -> Iterator[tuple[list[int], Found]]:
        """Ask a model, in evaluation mode, about this process' part of some samples.

        Args:
            model: that is asked.
            runtime: of the model.
            samples: so many, of all processes together.
            name: of the evaluation, beside a progress bar.
            progress: whether to show that.
            ask: about the samples at some places; asked again, about fewer, where a GPU had no room
                for them.
            order: of all places; None: as they are.

        Returns:
            Places and what was found; every place once, in this order.

        Raises:
            torch.OutOfMemoryError: no room for a single sample, or for the size that was given.
        """
        model.eval()
        automatic = runtime.on_gpu and self._training is not None
        if automatic and self._training is not None and self._grows is None:
            self.size, self._grows = self._training, True
        own, done = self._own(runtime.world, samples, automatic), 0
        own = own if order is None else [order[place] for place in own]
        packed = packed_weights(model) if len(own) > self.size else nullcontext()
        with tqdm(
            total=len(own),
            desc=name,
            unit="sample",
            leave=False,
            disable=not (progress and runtime.world.main),
            dynamic_ncols=True,
        ) as bar:
            while done < len(own):
                places, room = own[done : done + self.size], True
                try:
                    with packed:  # entered anew, as whoever reads the answers is not within it
                        answer = ask(places)
                except torch.OutOfMemoryError:
                    if not automatic or self.size == 1:
                        raise
                    room = False
                if not room:  # no longer in `except`, where the error holds what the batch needed
                    self.size, self._grows = self.size // 2, False
                    torch.cuda.empty_cache()
                    continue
                yield places, answer
                done += len(places)
                bar.update(len(places))
                if automatic:
                    self._go_on(len(places))
        if automatic:
            self._grows = False
            self._tell()

    def _own(self, world: World, samples: int, automatic: bool) -> list[int]:
        """This process' places, which do not depend on what its device has room for."""
        if automatic:
            return list(world.share(range(samples)))
        batches = world.share(list(iterate(samples, self.size)))
        return [place for batch in batches for place in batch]

    def _go_on(self, asked: int) -> None:
        """After a batch that had room."""
        if self._grows and asked == self.size:
            self._grows = self.size * 2 <= (self._training or 0) * MOST
            self.size *= 2 if self._grows else 1
        if not self._grows:
            self._tell()

    def _tell(self) -> None:
        if self._told != self.size:
            self._told = self.size
            self._say(f"evaluation in batches of {self.size} samples")
