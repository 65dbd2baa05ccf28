"""LayerDrop (Fan et al. 2020): training leaves whole layers out at random, so that a smaller model
can be taken out of the trained one.

A layer that is left out costs nothing and hands on what it was given. What is drawn depends on the
seed and the step alone: it is the same in all processes and after a resume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.adapt.encoder import RoutedEncoder
from common.adapt.families import find_encoder
from common.adapt.merging import remove_layers
from common.adapt.policy import uniform_noise
from common.errors import ConfigError

RULES = ("every_other", "spread")
DRAWS = 20_201  # keeps these draws apart from those of samples


@dataclass(frozen=True)
class LayerDrop:
    """Which layers training leaves out.

    Attributes:
        rate: probability of each layer, independently.
        count: instead, so many layers of each stack, as in the adaptive LXMERT.
    """

    rate: float = 0.0
    count: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ConfigError(f"LayerDrop rate {self.rate}: give a number from 0, below 1")
        if self.count < 0:
            raise ConfigError(f"LayerDrop count {self.count}: give a number of at least 0")
        if self.rate and self.count:
            raise ConfigError("LayerDrop: give a rate, or a number of layers of each stack")

    @classmethod
    def chosen(cls, rate: float, count: int) -> LayerDrop | None:
        """What flags or a config say; None where nothing is ever left out."""
        found = cls(rate, count)
        return found if rate or count else None

    def draw(self, stacks: Mapping[str, Sequence[str]], key: tuple[int, int]) -> frozenset[str]:
        """The layers that one step leaves out, never all of a model's.

        Args:
            stacks: names of the layers in each stack.
            key: seed and step.
        """
        names = [name for stack in stacks.values() for name in stack]
        noise = uniform_noise((*key, [DRAWS]), 1, len(names), torch.device("cpu"))
        drawn = dict(zip(names, noise[0].tolist(), strict=True))
        if self.count:
            out = [n for stack in stacks.values() for n in _smallest(stack, drawn, self.count)]
        else:
            out = [name for name in names if drawn[name] < self.rate]
        if len(out) == len(names):
            out.remove(max(out, key=lambda name: drawn[name]))
        return frozenset(out)


def _smallest(stack: Sequence[str], drawn: Mapping[str, float], count: int) -> list[str]:
    return sorted(stack, key=lambda name: drawn[name])[:count]


def stacks_of(encoder: RoutedEncoder) -> dict[str, list[str]]:
    """Names of the layers in each of the encoder's stacks, in order."""
    found: dict[str, list[str]] = {}
    for layer in encoder.layers():
        found.setdefault(layer.path.rpartition(".")[0], []).append(layer.name)
    return found


class LayerDropping:
    """Leaves out layers of one model in training mode."""

    def __init__(self, model: nn.Module, options: LayerDrop) -> None:
        """Look up the model's layers, which stay the same.

        Raises:
            ConfigError: a stack would lose all its layers.
        """
        self.encoder, self.options = find_encoder(model), options
        self.stacks = stacks_of(self.encoder)
        for stack, names in self.stacks.items():
            if options.count >= len(names):
                raise ConfigError(
                    f"LayerDrop of {options.count} layers of each stack: {stack} has {len(names)}"
                )

    def draw(self, seed: int, step: int) -> None:
        """Choose what the next forward passes leave out."""
        self.encoder.dropped = self.options.draw(self.stacks, (seed, step))


def kept_layers(encoder: RoutedEncoder, rule: str) -> list[str]:
    """Which layers pruning keeps.

    Args:
        encoder: the full one.
        rule: `every_other` keeps the first, third, … of each stack; `spread` half of each stack
            and `N` all but N of it, evenly from its first to its last; else the names of the
            layers to keep, e.g. `lang.1,cross.2`.

    Raises:
        ConfigError: a name that is no layer, or a stack that would be left without layers.
    """
    stacks = stacks_of(encoder)
    if rule == "every_other":
        return [name for names in stacks.values() for name in names[::2]]
    if rule == "spread":
        counts = {stack: (len(names) + 1) // 2 for stack, names in stacks.items()}
    elif rule.isdecimal():
        counts = {stack: len(names) - int(rule) for stack, names in stacks.items()}
        for stack, count in counts.items():
            if count < 1:
                raise ConfigError(
                    f"pruning {rule} layers of each stack: {stack} has {len(stacks[stack])}"
                )
    else:
        wanted = [name.strip() for name in rule.split(",")]
        known = [name for names in stacks.values() for name in names]
        for name in wanted:
            if name not in known:
                raise ConfigError(
                    f"pruning {rule!r}: {name!r} is no layer; give {', '.join(RULES)}, a number, "
                    f"or some of {', '.join(known)}"
                )
        return [name for name in known if name in wanted]
    return [names[i] for stack, names in stacks.items() for i in _evenly(len(names), counts[stack])]


def _evenly(total: int, count: int) -> list[int]:
    """`count` of `total` places, the first and the last among them."""
    if count == 1:
        return [0]
    places: Tensor = torch.linspace(0, total - 1, count, dtype=torch.float64)
    return [int(place) for place in (places + 0.5).floor().tolist()]


def prune(model: nn.Module, rule: str | None) -> list[str]:
    """Take layers out of a model for good.

    Args:
        model: plain, with the weights of all its layers.
        rule: see `kept_layers`; None keeps all.

    Returns:
        The names of the removed layers.

    Raises:
        ConfigError: it is adapted, or see `kept_layers`.
    """
    if rule is None:
        return []
    encoder = find_encoder(model)
    if encoder.adaptive is not None:
        raise ConfigError(
            f"strategy {encoder.adaptive.strategy.name} decides about layers, so none can be taken "
            "out; `python -m common.export` makes a plain model of it, which can be pruned"
        )
    kept = kept_layers(encoder, rule)
    gone = [layer.name for layer in encoder.layers() if layer.name not in kept]
    remove_layers(encoder, gone)
    return gone
