"""What attention looks at while a model runs: the weights that were used, layer by layer.

    with capture(model) as found:
        model(**inputs)
    found[0].layer, found[0].weights        # `lang.1`, (N, H, T, S)

The model computes what it computes without being watched. With a mechanism the weights are those
that it used; of softmax, which torch's own function does not hand out, they are computed beside it.
Where branches are chosen, the weights of each sample are those of its branch; a layer that a sample
skips has none. Shape legend: B batch, N samples, H heads, T queries, S keys, c channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.adapt.encoder import RoutedEncoder
from common.adapt.families import find_encoder
from common.adapt.routes import State
from common.adapt.steps import WATCHERS, HeadsStep
from common.errors import ConfigError
from common.modules.masks import MASKED


@dataclass(frozen=True)
class Attended:
    """One attention of one layer, in one forward pass.

    Attributes:
        layer: its name, such as `lang.3`.
        queries, keys: the streams, such as `lang` and `vision`.
        rows: (N,) places in the batch, of those samples whose branch this is.
        weights: (N, H, T, S); those of a query that is there sum to 1.
        values: (N, H, S, c), what is weighted.
        context: (N, T, H * c), what the model computed from both.
        query_there: (N, T) bool, false where the batch is padded.
        key_there: (N, S) bool.
    """

    layer: str
    queries: str
    keys: str
    rows: Tensor
    weights: Tensor
    values: Tensor
    context: Tensor
    query_there: Tensor
    key_there: Tensor

    @property
    def there(self) -> Tensor:
        """(N, 1, T, S) bool: weights between a query and a key that are both there."""
        return (self.query_there[:, :, None] & self.key_there[:, None, :])[:, None]


class ZeroCount:
    """How many attention weights are exactly 0, of queries and keys that are there."""

    def __init__(self) -> None:
        self.zeros = self.weights = 0

    def add(self, found: Attended) -> None:
        """Count those of one attention."""
        heads = found.weights.shape[1]
        self.zeros += int(((found.weights == 0) & found.there).sum())
        self.weights += int(found.there.sum()) * heads

    @property
    def share(self) -> float | None:
        """0..1; None where nothing attended, as where every layer is skipped."""
        return self.zeros / self.weights if self.weights else None


@contextmanager
def capture(model: nn.Module) -> Iterator[list[Attended]]:
    """Within the context, collect every attention of every forward pass, in order of execution.

    Args:
        model: in evaluation mode; plain, with a mechanism of attention, adapted, or pruned.

    Raises:
        ConfigError: it is in training mode, where dropout changes the weights.
    """
    found: list[Attended] = []
    with watch(model, found.append):
        yield found


@contextmanager
def count_zeros(model: nn.Module) -> Iterator[ZeroCount]:
    """Within the context, count zeros over all forward passes; keeps no weights.

    Raises:
        ConfigError: the model is in training mode.
    """
    count = ZeroCount()
    with watch(model, count.add):
        yield count


def zero_share(found: Iterable[Attended]) -> float | None:
    """Share of the captured weights that are exactly 0; padding does not count."""
    count = ZeroCount()
    for each in found:
        count.add(each)
    return count.share


@contextmanager
def watch(model: nn.Module, seen: Callable[[Attended], None]) -> Iterator[None]:
    """Within the context, call `seen` after every attention of the model.

    Raises:
        ConfigError: the model is in training mode.
    """
    if model.training:
        raise ConfigError(
            "attention is captured in evaluation mode, where it is that of the answers: call "
            "model.eval() first"
        )
    token = WATCHERS.set((*WATCHERS.get(), _Watch(find_encoder(model), seen)))
    try:
        yield
    finally:
        WATCHERS.reset(token)


class _Watch:
    """Says of every attention whose it is; other encoders, such as policies', are left out."""

    def __init__(self, encoder: RoutedEncoder, seen: Callable[[Attended], None]) -> None:
        self._encoder, self._seen = encoder, seen
        self._layers: dict[int, tuple[str, int]] = {}
        self._masks: dict[str, Tensor | None] = {}
        for layer in encoder.layers():
            self._layers[id(encoder.get_submodule(layer.path))] = layer.name, 1
            twin = encoder.adaptive.twin(layer.name) if encoder.adaptive is not None else None
            if twin is not None:
                self._layers[id(twin)] = layer.name, 0

    def started(self, encoder: nn.Module, state: State) -> None:
        """Note which places of each stream are there."""
        if encoder is self._encoder:
            self._masks = {
                slot.removesuffix(".mask"): mask
                for slot, mask in state.items()
                if slot.endswith(".mask")
            }

    def attended(
        self, step: HeadsStep, layer: nn.Module, weights: Tensor, values: Tensor, context: Tensor
    ) -> None:
        """Hand on the samples whose branch `layer` is."""
        if id(layer) not in self._layers:
            return
        name, branch = self._layers[id(layer)]
        rows = self._rows(step, name, branch, len(weights))
        if not len(rows):
            return
        if len(rows) < len(weights):  # both branches ran on all samples
            weights, values, context = (x[rows] for x in (weights, values, context))
        queries, keys = (slot.partition(".")[0] for slot in step.reads[:2])
        key_there = self._there(keys, rows, values.shape[2])
        self._seen(
            Attended(
                name,
                queries,
                keys,
                rows,
                weights.detach(),
                values.detach(),
                context.detach(),
                self._there(queries, rows, weights.shape[2])[:, : weights.shape[2]],
                key_there,
            )
        )

    def _rows(self, step: HeadsStep, layer: str, branch: int, count: int) -> Tensor:
        """Places in the batch of the samples that chose this branch here."""
        part = self._encoder.adaptive
        if part is None:
            return torch.arange(count)
        assert part.last is not None
        decisions = part.last.decisions.detach()
        site = next(s for s in part.sites if s.layer == layer and step in s.steps)
        if site.per_head:
            return torch.arange(count, device=decisions.device)
        return (decisions[:, site.columns[0]] == branch).nonzero().squeeze(1)

    def _there(self, stream: str, rows: Tensor, places: int) -> Tensor:
        """(N, T) bool: which places of a stream are no padding; `places` where it has no mask."""
        mask = self._masks.get(stream)
        if mask is None:
            return torch.ones(len(rows), places, dtype=torch.bool, device=rows.device)
        there = mask[:, 0, 0] > MASKED / 2
        return there.expand(len(rows), -1) if len(there) == 1 else there[rows.to(there.device)]


def attention_heads(model: nn.Module) -> dict[str, int]:
    """The layers that attend to something, in order of execution, with their largest number of
    heads."""
    found: dict[str, int] = {}
    for layer, module, step in find_encoder(model).attending():
        heads = step.attention(module).num_attention_heads
        found[layer.name] = max(heads, found.get(layer.name, 0))
    return found
