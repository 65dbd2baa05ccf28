"""Strategies: how the steps of an encoder are grouped into sites, and what the other branch is.

A strategy is a row of `STRATEGIES`; `plan_sites` turns it and the layers of any encoder into the
sites of that encoder, with the place of each site's decisions in the decision vector.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from common.adapt.steps import Layer, Step, live_steps
from common.errors import ConfigError


@dataclass(frozen=True)
class Strategy:
    """One row of the table of strategies.

    Attributes:
        name: canonical spelling.
        grouping: what one site is: `layer`, `part` (between two skip connections), `component`
            (every attention head and every dense layer), or None where nothing is decided.
        other: branch of decision 0: `twin` (frozen copy), `skip` (identity), `linear` (a trained
            linear map for each stream), or None.
        frozen: which layers are frozen when nothing is decided: `none`, `all`, `not_last`
            (all but the last k), `listed`.
        summary: one line for `--help` and the README.
    """

    name: str
    grouping: str | None
    other: str | None
    frozen: str
    summary: str

    @property
    def adaptive(self) -> bool:
        return self.grouping is not None

    @property
    def decision_word(self) -> str:
        """What decision 1 means, for tables and plots."""
        return {"twin": "finetuned", "skip": "kept", "linear": "kept"}.get(self.other or "", "")

    @property
    def other_word(self) -> str:
        """What decision 0 means."""
        return {"twin": "frozen", "skip": "skipped", "linear": "replaced"}.get(self.other or "", "")


STRATEGIES: dict[str, Strategy] = {
    row.name: row
    for row in (
        Strategy("standard", None, None, "none", "every weight is finetuned"),
        Strategy("Frozen", None, None, "all", "all encoder layers keep their pretrained weights"),
        Strategy(
            "LastK",
            None,
            None,
            "not_last",
            "only the last k layers are finetuned (--trainable-layers last:4)",
        ),
        Strategy(
            "FrozenLayers",
            None,
            None,
            "listed",
            "the listed layers keep their pretrained weights (--frozen-layers 3,4,10,11)",
        ),
        Strategy(
            "SpotTune_Block",
            "layer",
            "twin",
            "none",
            "per sample and layer: finetuned or pretrained weights",
        ),
        Strategy(
            "SpotTune_Res",
            "part",
            "twin",
            "none",
            "per sample and part between two skip connections: finetuned or pretrained weights",
        ),
        Strategy(
            "SpotTune",
            "component",
            "twin",
            "none",
            "per sample and attention head or dense layer: finetuned or pretrained weights",
        ),
        Strategy("BlockDrop", "layer", "skip", "none", "per sample and layer: run it or skip it"),
        Strategy(
            "BlockReplace",
            "layer",
            "linear",
            "none",
            "per sample and layer: run it or put a linear map in its place",
        ),
    )
}
ALIASES = {"frozen_bert": "Frozen", "pretrained_frozen": "Frozen", "specific_k": "FrozenLayers"}


def find_strategy(name: str) -> tuple[Strategy, int | None]:
    """Look a strategy up by name, in any case, or by a published alias.

    Returns:
        The strategy, and k where the name carries it (`last_4`).

    Raises:
        ConfigError: unknown name; lists the valid ones.
    """
    wanted = name.strip().lower()
    last = re.fullmatch(r"last_(\d+)", wanted)
    if last:
        return STRATEGIES["LastK"], int(last.group(1))
    by_name = {known.lower(): row for known, row in STRATEGIES.items()}
    by_name |= {alias: STRATEGIES[target] for alias, target in ALIASES.items()}
    if wanted in by_name:
        return by_name[wanted], None
    near = get_close_matches(wanted, by_name, n=1)
    hint = f" Did you mean {by_name[near[0]].name}?" if near else ""
    raise ConfigError(
        f"unknown strategy {name!r}.{hint} Valid: {', '.join(STRATEGIES)}; "
        f"aliases: {', '.join(ALIASES)}, last_<k>"
    )


@dataclass(frozen=True)
class Site:
    """A place where something is decided.

    Attributes:
        layer: name of its layer.
        component: what it is within the layer; empty for a whole layer.
        steps: its live steps, in order of execution.
        columns: its decisions in the vector (one, or one for each attention head).
        inputs, outputs: slots that it reads from outside, and that are read after it.
        narrowed: those of `outputs` of which only the first position is computed.
        per_head: whether every attention head decides for itself.
        live: whether any of its decisions can matter.
    """

    layer: str
    component: str
    steps: tuple[Step, ...]
    columns: range
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    per_head: bool
    live: bool
    narrowed: tuple[str, ...] = ()

    def decision_names(self) -> list[str]:
        """Components of the site's decisions: `head.1` … where heads decide, else the component."""
        if self.per_head:
            return [f"{self.component}.{head + 1}" for head in range(len(self.columns))]
        return [self.component]


def plan_sites(
    layers: Sequence[Layer], strategy: Strategy, reads: Sequence[str], first: Sequence[str] = ()
) -> list[list[Site]]:
    """Group the steps of every layer into the sites of a strategy, in order of execution.

    The order of the steps in a layer's table is the order of its decisions (as in the original:
    language, vision, cross; within a layer heads, attention output, intermediate, output).

    Args:
        layers: the encoder's layers in execution order.
        strategy: its `grouping` must not be None.
        reads: slots read after the last layer; what cannot reach them is dead.
        first: those of `reads` of which only the first position is read.
    """
    live, streams = live_steps(layers, reads, strategy.other in ("skip", "linear"), first)
    plans: list[list[Site]] = []
    start = 0
    for layer, layer_live, layer_streams in zip(layers, live, streams, strict=True):
        sites = []
        live_groups = _group(layer_live, strategy.grouping)
        for component, steps in _group(layer.steps, strategy.grouping).items():
            per_head = strategy.grouping == "component" and steps[0].per_head
            width = layer.heads if per_head else 1
            kept = live_groups.get(component, ())
            site = Site(
                layer.name,
                component,
                kept,
                range(start, start + width),
                _inputs(kept),
                (),
                per_head,
                bool(kept),
            )
            sites.append(site)
            start += width
        sites = _with_outputs(sites, layer_streams)
        if strategy.other in ("skip", "linear"):
            sites = [replace(s, inputs=tuple(dict.fromkeys(s.inputs + s.outputs))) for s in sites]
        _check_order(layer.name, layer_live, sites)
        plans.append(sites)
    return plans


def _group(steps: Sequence[Step], grouping: str | None) -> dict[str, tuple[Step, ...]]:
    if grouping == "layer":
        return {"": tuple(steps)} if steps else {}
    if grouping not in ("part", "component"):
        raise ConfigError(f"strategy without decisions has no sites (grouping {grouping!r})")
    groups: dict[str, tuple[Step, ...]] = {}
    for step in steps:
        name = getattr(step, grouping)
        groups[name] = (*groups.get(name, ()), step)
    return groups


def _inputs(steps: Sequence[Step]) -> tuple[str, ...]:
    """Slots that the steps read and none of them has written before."""
    written: set[str] = set()
    read: dict[str, None] = {}
    for step in steps:
        read |= dict.fromkeys(slot for slot in step.reads if slot not in written)
        written |= set(step.writes)
    return tuple(read)


def _with_outputs(sites: Sequence[Site], streams: Sequence[str]) -> list[Site]:
    """Fill in what each site hands on: the written slots that are read later."""
    needed = set(streams)
    done: list[Site] = []
    for site in reversed(sites):
        written = dict.fromkeys(slot for step in site.steps for slot in step.writes)
        narrowed = {slot for step in site.steps if step.first_only for slot in step.writes}
        outputs = tuple(slot for slot in written if slot in needed)
        done.append(
            replace(
                site, outputs=outputs, narrowed=tuple(slot for slot in outputs if slot in narrowed)
            )
        )
        needed = (needed - set(written)) | set(site.inputs)
    return done[::-1]


def _check_order(layer: str, live: Sequence[Step], sites: Sequence[Site]) -> None:
    """The sites, run one after the other, must feed every step what the layer's order feeds it."""

    def producers(steps: Sequence[Step]) -> dict[int, tuple[int | None, ...]]:
        last: dict[str, int] = {}
        found = {}
        for step in steps:
            found[id(step)] = tuple(last.get(slot) for slot in step.reads)
            last |= dict.fromkeys(step.writes, id(step))
        return found

    if producers([step for site in sites for step in site.steps]) != producers(live):
        raise ConfigError(f"the sites of layer {layer} are not closed under its dependencies")
