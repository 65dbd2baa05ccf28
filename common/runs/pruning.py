"""Loading, pruning and adapting a model, in the order that its file needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from torch import nn

from common.adapt.layerdrop import prune


class Sizes(Protocol):
    """The sizes of a model of ours."""

    def to_dict(self) -> dict[str, Any]:
        """For the meta of a checkpoint."""


class HasConfig(Protocol):
    """A model of ours."""

    config: Sizes


def model_config(model: nn.Module) -> dict[str, Any]:
    """The sizes that a model of ours keeps."""
    return cast(HasConfig, model).config.to_dict()


def load_and_adapt(
    model: nn.Module,
    load: Callable[[], object],
    adapt: Callable[[], object],
    own_names: bool,
    rule: str | None,
    meta: dict[str, Any],
    say: Callable[[str], object] = print,
) -> None:
    """Give a new model its weights and its strategy; layers are taken out between the two.

    Args:
        model: plain, with random weights.
        load: loads its weights.
        adapt: gives it its strategy.
        own_names: the weights are those of an adapted model, see `has_own_names`: it is adapted
            before they are loaded.
        rule, meta, say: see `prune_layers`.

    Raises:
        ConfigError, CheckpointError: see `prune_layers`, and what `load` and `adapt` raise.
    """
    if own_names:
        adapt()
    load()
    prune_layers(model, rule, meta, say)
    if not own_names:
        adapt()


def prune_layers(
    model: nn.Module, rule: str | None, meta: dict[str, Any], say: Callable[[str], object] = print
) -> None:
    """Take layers out of a model, in its meta as well.

    Args:
        model: with the weights of all its layers.
        rule: see `common.adapt.layerdrop.kept_layers`; None keeps all.
        meta: of the model; its sizes and what was taken out are put in.
        say: where to report to.

    Raises:
        ConfigError: the model decides about its layers, or the rule does not fit it.
    """
    gone = prune(model, rule)
    if gone:
        meta |= {"config": model_config(model), "pruned": rule}
        say(f"--prune {rule}: without the layers {', '.join(gone)}")
