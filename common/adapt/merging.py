"""From an adaptive model and one decision per site to the plain model that computes the same.

Where the other branch is a frozen twin, each site keeps the weights of the branch that was decided
for, head by head where heads decide. Where it is the identity, layers that were decided against
are taken out. Linear maps have no place in a plain model. Shape legend: D decisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from common.adapt.adapting import adaptive_part
from common.adapt.encoder import Adaptive, RoutedEncoder
from common.adapt.families import find_encoder
from common.adapt.guards import release
from common.adapt.steps import HeadsStep
from common.adapt.strategies import Site
from common.errors import ConfigError

SHOWN = 6  # names in messages


@dataclass
class Merged:
    """What became of the sites of an adaptive model.

    Attributes:
        strategy: of the adaptive model.
        ones: names of the live decisions that were 1 (finetuned, or kept).
        zeros: names of the live decisions that were 0 (frozen, or dropped).
        dropped: layers that are gone, in order of execution.
    """

    strategy: str
    ones: list[str] = field(default_factory=list)
    zeros: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


def merge(model: nn.Module, decisions: Tensor | None = None) -> Merged:
    """Turn an adaptive model into a plain one, in place: no twins, no policy, no decisions.

    Dead parts, which no decision reaches, keep the model's own weights; nothing reads them.

    Args:
        model: adapted, with an adaptive strategy.
        decisions: (D,) of 0 / 1; default the model's global decisions.

    Raises:
        ConfigError: nothing was decided, or it has no plain form; the model is then unchanged.
    """
    part = adaptive_part(model)
    if part is None:
        raise ConfigError(f"the {type(model).__name__} has no decisions to merge: it is plain")
    decisions = _checked(part, part.global_decisions if decisions is None else decisions)
    encoder = find_encoder(model)
    merged = Merged(part.strategy.name)
    live = zip(part.decision_names, part.live.tolist(), decisions.tolist(), strict=True)
    for name, alive, value in live:
        if alive:
            (merged.ones if value else merged.zeros).append(name)
    with torch.no_grad():
        if part.strategy.other == "twin":
            _keep_branches(part, encoder, decisions)
        elif part.strategy.other == "skip":
            merged.dropped = _dropped(part, decisions)
        elif merged.zeros:
            raise ConfigError(
                f"{part.strategy.name} decided for a linear map at {len(merged.zeros)} of "
                f"{len(merged.ones) + len(merged.zeros)} layers ({_some(merged.zeros)}): that is "
                "no plain model. Only if all layers keep their blocks is there one (--global-k "
                f"{len(merged.ones) + len(merged.zeros)})"
            )
    release(model)
    encoder.adaptive = None
    remove_layers(encoder, merged.dropped)
    return merged


def _checked(part: Adaptive, decisions: Tensor) -> Tensor:
    if decisions.shape != part.live.shape:
        raise ValueError(f"decisions {tuple(decisions.shape)}, needed {tuple(part.live.shape)}")
    decisions = decisions.detach().cpu()
    wrong = part.live.cpu() & (decisions != 0) & (decisions != 1)
    if wrong.any():
        names = [name for name, bad in zip(part.decision_names, wrong, strict=True) if bad]
        raise ConfigError(
            f"{len(names)} sites have no global decision ({_some(names)}): evaluate "
            "with --policy-eval global first, or compute them (set_global_decisions)"
        )
    return decisions


def _keep_branches(part: Adaptive, encoder: RoutedEncoder, decisions: Tensor) -> None:
    """Copy the twin's weights to every place where 0 was decided."""
    paths = {layer.name: layer.path for layer in encoder.layers()}
    copies: list[tuple[nn.Module, nn.Module, Tensor | None]] = []
    for site in part.sites:
        frozen = decisions[site.columns.start : site.columns.stop] == 0
        if not site.live or not frozen.any():
            continue
        own, twin = encoder.get_submodule(paths[site.layer]), part.twin(site.layer)
        assert twin is not None
        for step in site.steps:
            if site.per_head:
                assert isinstance(step, HeadsStep)
                _check_heads(step, own, site)
                pairs: Iterable[tuple[nn.Module, nn.Module]] = zip(
                    step.projections(own), step.projections(twin), strict=True
                )
            else:
                pairs = zip(step.modules(own), step.modules(twin), strict=True)
            copies += [(*pair, frozen if site.per_head else None) for pair in pairs]
    for module, source, heads in copies:
        if heads is None:
            module.load_state_dict(source.state_dict())
        else:
            _copy_heads(module, source, heads)


def _check_heads(step: HeadsStep, layer: nn.Module, site: Site) -> None:
    known = {id(p) for linear in step.projections(layer) for p in linear.parameters()}
    others = sorted(
        name for m in step.modules(layer) for name, p in m.named_parameters() if id(p) not in known
    )
    if others:
        raise ConfigError(
            f"the heads of {site.layer} ({site.component}) have parameters that are "
            f"not split by head: {_some(others)}"
        )


def _copy_heads(projection: nn.Module, source: nn.Module, heads: Tensor) -> None:
    """Copy the rows of some heads, `heads` (H,) bool, of a projection (H * c, C)."""
    for ours, theirs in zip(projection.parameters(), source.parameters(), strict=True):
        rows = heads.to(ours.device).repeat_interleave(len(ours) // len(heads))
        ours[rows] = theirs[rows]


def _dropped(part: Adaptive, decisions: Tensor) -> list[str]:
    dropped = [site.layer for site in part.sites if site.live and not decisions[site.columns.start]]
    if len(dropped) == len(part.sites):
        raise ConfigError(
            "every layer is dropped: nothing is left of the encoder; keep some with --global-k K"
        )
    return dropped


def remove_layers(encoder: RoutedEncoder, names: Sequence[str]) -> None:
    """Take layers out of an encoder; those behind them move up.

    Args:
        encoder: plain; its layers are items of `nn.ModuleList`s.
        names: of the layers.
    """
    if encoder.adaptive is not None:
        raise ConfigError("layers are removed from a plain encoder")
    gone = {layer.path for layer in encoder.layers() if layer.name in set(names)}
    for path in sorted({path.rpartition(".")[0] for path in gone}):
        stack = cast(nn.ModuleList, encoder.get_submodule(path))
        kept = [module for place, module in enumerate(stack) if f"{path}.{place}" not in gone]
        parent, _, name = path.rpartition(".")
        setattr(encoder.get_submodule(parent), name, nn.ModuleList(kept))
    encoder.layers_removed(names)
    encoder.set_reads(encoder.reads, encoder.reads_first)


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f", … {rest} more" if rest > 0 else "")
