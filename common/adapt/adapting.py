"""`adapt(model, strategy=…, policy=…)`: make a pretrained model adaptive, in place.

    model = adapt(backbone, strategy="SpotTune_Block", policy="small")

works on the backbones of this repository and on a `transformers` `LxmertModel`, and returns the
same `nn.Module`, to be trained with any loop. Load pretrained weights before: twins copy them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from common.adapt.encoder import HALF, POLICY_EVALUATIONS, Adaptive, AdaptiveOptions, RoutedEncoder
from common.adapt.families import find_encoder
from common.adapt.guards import protect
from common.adapt.policy import OraclePolicy, RandomPolicy, SharedPolicy, SmallPolicy
from common.adapt.steps import Layer, live_steps
from common.adapt.strategies import Strategy, find_strategy, plan_sites
from common.errors import ConfigError

Model = TypeVar("Model", bound=nn.Module)


def adapt(
    model: Model,
    strategy: str = "standard",
    policy: str = "small",
    *,
    trainable_layers: str | None = None,
    frozen_layers: str | Sequence[int | str] | None = None,
    initial_share: float = 0.5,
    options: AdaptiveOptions | None = None,
) -> Model:
    """Give a model a finetuning strategy.

    Args:
        model: with pretrained weights already loaded.
        strategy: a name of `common.adapt.strategies.STRATEGIES`, in any case, or an alias.
        policy: `small`, `published`, or a control without a network: `shared`, which learns the
            same odds for all samples, `random:<share>`, or `oracle:<kind>`, which decides 1 for
            samples of that kind (`Adaptive.tell` says theirs) and 0 for others; ignored by
            strategies that decide nothing.
        trainable_layers: for `LastK`, `last:<k>`.
        frozen_layers: for `FrozenLayers`, numbers from 1 in execution order or names (`lang.3`).
        initial_share: probability of decision 1 before training, in (0, 1).
        options: executors, evaluation of the policy, temperature.

    Returns:
        The same model, with `requires_grad` set and, where the strategy decides something, the
        submodule `adaptive` in its encoder.
    """
    row, k = find_strategy(strategy)
    options = options or AdaptiveOptions()
    if options.policy_eval not in POLICY_EVALUATIONS:
        raise ConfigError(
            f"unknown policy evaluation {options.policy_eval!r}; valid: "
            f"{', '.join(POLICY_EVALUATIONS)}"
        )
    encoder = find_encoder(model)
    if encoder.adaptive is not None:
        raise ConfigError("the model is adapted already; build it anew for another strategy")
    layers = encoder.layers()
    freeze_layers(layers, row, k, trainable_layers, frozen_layers)
    if row.adaptive:
        count = len(
            [
                c
                for sites in plan_sites(layers, row, encoder.reads)
                for site in sites
                for c in site.columns
            ]
        )
        network = make_policy(policy, encoder, layers, count, initial_share)
        encoder.adaptive = Adaptive(
            layers, encoder.reads, row, network, options, encoder.reads_first
        )
        reference = next(model.parameters())
        encoder.adaptive.to(device=reference.device, dtype=reference.dtype)
        if reference.dtype in HALF:
            network.float()  # it decides by small differences, and costs little
        encoder.adaptive.train(encoder.training)
        protect(model, encoder)
    freeze_dead(layers, encoder.reads)
    if encoder.span_policy is not None and not any(
        p.requires_grad for n, p in encoder.named_parameters() if ".span.shift." in n
    ):
        encoder.span_policy.requires_grad_(False)  # no head that moves its span
    return model


def adaptive_part(model: nn.Module) -> Adaptive | None:
    """The adaptive part of a model, or None where its strategy decides nothing."""
    return next((m for m in model.modules() if isinstance(m, Adaptive)), None)


def deciding_part(model: nn.Module) -> Adaptive:
    """The adaptive part of a model that has one.

    Raises:
        ConfigError: its strategy decides nothing.
    """
    part = adaptive_part(model)
    if part is None:
        raise ConfigError(f"the strategy of this {type(model).__name__} decides nothing")
    return part


def make_policy(
    name: str, encoder: RoutedEncoder, layers: Sequence[Layer], decisions: int, initial_share: float
) -> nn.Module:
    """Build the policy network of that name for an encoder and a number of decisions."""
    if name == "small":
        channels = {s: c for layer in layers for s, c in layer.streams.items()}
        return SmallPolicy(channels, decisions, initial_share=initial_share)
    if name == "published":
        if encoder.policy_factory is None:
            raise ConfigError(
                f"{type(encoder).__name__} has no published policy network; use 'small'"
            )
        return encoder.policy_factory(decisions, initial_share)
    if name == "shared":
        return SharedPolicy(decisions, initial_share)
    control, _, value = name.partition(":")
    try:
        if control == "random":
            return RandomPolicy(decisions, float(value))
        if control == "oracle":
            return OraclePolicy(decisions, value)
    except ValueError as error:
        example = {"random": "random:0.5", "oracle": "oracle:learned"}[control]
        raise ConfigError(f"policy {name!r}: {error}; use e.g. {example}") from None
    raise ConfigError(
        f"unknown policy {name!r}; valid: small, published, shared, random:<share>, oracle:<kind>"
    )


def freeze_layers(
    layers: Sequence[Layer],
    strategy: Strategy,
    k: int | None,
    trainable: str | None,
    frozen: str | Sequence[int | str] | None,
) -> None:
    """Freeze the layers that a static strategy freezes."""
    if trainable is not None and strategy.frozen != "not_last":
        raise ConfigError(f"trainable layers ({trainable!r}) belong to LastK, not {strategy.name}")
    if frozen is not None and strategy.frozen != "listed":
        raise ConfigError(f"frozen layers ({frozen!r}) belong to FrozenLayers, not {strategy.name}")
    chosen: Sequence[Layer] = ()
    if strategy.frozen == "all":
        chosen = layers
    elif strategy.frozen == "not_last":
        chosen = layers[: len(layers) - _last_count(k, trainable, len(layers))]
    elif strategy.frozen == "listed":
        chosen = _listed(layers, frozen)
    for layer in chosen:
        layer.module.requires_grad_(False)


def freeze_dead(layers: Sequence[Layer], reads: Sequence[str]) -> None:
    """Freeze the parameters of steps that can reach nothing that is read."""
    for layer, live in zip(layers, live_steps(layers, reads)[0], strict=True):
        modules = [module for step in live for module in step.modules(layer.module)]
        used = {id(p) for module in modules for p in module.parameters()}
        for parameter in layer.module.parameters():
            if id(parameter) not in used:
                parameter.requires_grad_(False)


def set_global_decisions(adaptive: Adaptive, share: Tensor, k: int | None = None) -> None:
    """Fix one decision per site for the whole data set.

    Args:
        adaptive: the part whose buffer is set.
        share: (D,) share of samples with decision 1.
        k: keep the k most used live sites; default the majority at each site.
    """
    live = adaptive.live
    share = share.to(live.device)
    if k is None:
        decisions = (share > 0.5).to(adaptive.global_decisions.dtype)
    else:
        if not 0 <= k <= int(live.sum()):
            raise ConfigError(f"global k = {k} is not in 0..{int(live.sum())} live decisions")
        ranked = torch.where(live, share, -1.0).argsort(descending=True, stable=True)
        decisions = torch.zeros_like(adaptive.global_decisions)
        decisions[ranked[:k]] = 1
    adaptive.global_decisions.copy_(decisions)


def named_parameter_groups(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Parameters with their names by role: `trainable` (without the policy), `frozen`, `policy`."""
    adaptive = adaptive_part(model)
    policy = adaptive.policy.parameters() if adaptive and adaptive.policy else ()
    ours = {id(p) for p in policy}
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {
        "trainable": [],
        "frozen": [],
        "policy": [],
    }
    for name, parameter in model.named_parameters():
        role = "trainable" if parameter.requires_grad else "frozen"
        groups["policy" if id(parameter) in ours else role].append((name, parameter))
    return groups


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Parameters by role, see `named_parameter_groups`."""
    return {
        role: [parameter for _, parameter in found]
        for role, found in named_parameter_groups(model).items()
    }


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters by role, tied ones counted once."""
    return {role: sum(p.numel() for p in found) for role, found in parameter_groups(model).items()}


def _last_count(k: int | None, trainable: str | None, layers: int) -> int:
    if trainable is not None:
        kind, _, number = trainable.partition(":")
        if kind != "last" or not number.isdigit():
            raise ConfigError(f"trainable layers {trainable!r} not understood; use e.g. last:4")
        if k is not None and k != int(number):
            raise ConfigError(f"strategy last_{k} and trainable layers {trainable!r} disagree")
        k = int(number)
    if k == 0:
        raise ConfigError("LastK with no trainable layer is the strategy Frozen")
    if k is None:
        raise ConfigError("LastK needs to know how many layers: --trainable-layers last:4")
    if k > layers:
        raise ConfigError(f"{k} trainable layers wanted, the encoder has {layers}")
    return k


def _listed(layers: Sequence[Layer], frozen: str | Sequence[int | str] | None) -> list[Layer]:
    if not frozen:
        raise ConfigError("FrozenLayers needs the layers: --frozen-layers 3,4,10,11")
    wanted = frozen.split(",") if isinstance(frozen, str) else [str(f) for f in frozen]
    by_name = {str(n): layer for n, layer in enumerate(layers, 1)}
    by_name |= {layer.name: layer for layer in layers}
    unknown = [name for name in wanted if name.strip() not in by_name]
    if unknown:
        raise ConfigError(
            f"unknown layers {', '.join(unknown)}; valid: 1..{len(layers)} or "
            f"{', '.join(layer.name for layer in layers)}"
        )
    return [by_name[name.strip()] for name in wanted]
