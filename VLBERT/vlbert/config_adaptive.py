"""What the keys of a config mean for the strategy, the policy network and the budget losses."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.adapt.budget import BudgetOptions
from common.adapt.encoder import AdaptiveOptions
from common.adapt.strategies import Strategy, find_strategy
from common.errors import ConfigError, named
from common.modules.attention import AttentionOptions
from common.training.policy_lessons import PolicyTraining
from vlbert.config import Config


@dataclass(frozen=True)
class AdaptiveSettings:
    """Arguments of `common.adapt.adapting.adapt` and of the training loop."""

    strategy: Strategy
    trainable_layers: str | None
    """last:K, for LastK."""
    frozen_layers: tuple[int, ...] | None
    """Numbers from 1, for FrozenLayers."""
    policy: str
    initial_share: float
    options: AdaptiveOptions
    budget: BudgetOptions
    temperature_end: float
    attention: AttentionOptions
    training: PolicyTraining = field(default_factory=PolicyTraining)


def adaptive_settings(config: Config) -> AdaptiveSettings:
    """Read FINETUNE_STRATEGY, POLICY.*, and the keys of the losses.

    Raises:
        ConfigError: An unknown strategy, FROZEN_LAYERS that are missing or not layers, or keys of
            a policy with a strategy that decides nothing; names file, key and value.
    """
    with named(f"{config.path}: key FINETUNE_STRATEGY"):
        strategy, k = find_strategy(config.FINETUNE_STRATEGY)
    if strategy.frozen == "not_last" and k is None:
        raise ConfigError(
            f"{config.path}: key FINETUNE_STRATEGY: {config.FINETUNE_STRATEGY}: "
            "say how many layers are trained, e.g. last_4"
        )
    for key in ("USE_CONSTRAIN_K_LOSS", "USE_DETERMINISTIC_POLICY_LOSS", "POLICY_GLOBAL_DECISION"):
        if config.values[key] and not strategy.adaptive:
            raise ConfigError(
                f"{config.path}: key {key}: true: strategy {strategy.name} decides "
                "nothing; set false, or choose another FINETUNE_STRATEGY"
            )
    policy = config.POLICY
    evaluation = "global" if config.POLICY_GLOBAL_DECISION else policy.EVALUATION
    return AdaptiveSettings(
        strategy,
        None if k is None else f"last:{k}",
        _frozen_layers(config, strategy),
        policy.NETWORK,
        policy.INITIAL_SHARE,
        AdaptiveOptions(
            executor=policy.EXECUTOR, policy_eval=evaluation, temperature=policy.TEMPERATURE
        ),
        _budget(config),
        policy.TEMPERATURE_END,
        _attention(config),
    )


def _attention(config: Config) -> AttentionOptions:
    part = config.ATTENTION
    with named(f"{config.path}: section ATTENTION"):
        return AttentionOptions(
            part.NORMALISER,
            part.SPAN,
            part.SPAN_RAMP,
            part.SPAN_INIT,
            part.ALPHA_INIT,
            part.SPAN_POLICY,
            part.SPAN_BATCH,
        )


def _frozen_layers(config: Config, strategy: Strategy) -> tuple[int, ...] | None:
    """NETWORK.VLBERT.FROZEN_LAYERS counts from 0, this code from 1."""
    if strategy.frozen != "listed":
        return None
    layers, count = config.NETWORK.VLBERT.FROZEN_LAYERS, config.NETWORK.VLBERT.num_hidden_layers
    if not layers or not all(0 <= layer < count for layer in layers):
        raise ConfigError(
            f"{config.path}: key NETWORK.VLBERT.FROZEN_LAYERS: {list(layers)}: "
            f"strategy {config.FINETUNE_STRATEGY} needs layers of 0 to {count - 1}"
        )
    return tuple(layer + 1 for layer in layers)


def _budget(config: Config) -> BudgetOptions:
    return BudgetOptions(
        constrain_k=config.CONSTRAIN_K_NUM_BLOCKS if config.USE_CONSTRAIN_K_LOSS else None,
        constrain_k_scale=config.CONSTRAIN_K_SCALE,
        deterministic_scale=(
            config.DETERMINISTIC_POLICY_SCALE if config.USE_DETERMINISTIC_POLICY_LOSS else 0.0
        ),
    )


def check_output_size(config: Config, decisions: int) -> None:
    """POLICY.OUTPUT_SIZE, where it is given, is two numbers per decision.

    Raises:
        ConfigError: It is another number.
    """
    size = config.POLICY.OUTPUT_SIZE
    if size not in (0, 2 * decisions):
        raise ConfigError(
            f"{config.path}: key POLICY.OUTPUT_SIZE: {size}: strategy "
            f"{config.FINETUNE_STRATEGY} has {decisions} decisions with two numbers "
            f"each: {2 * decisions}; leave the key out, it follows from the layers"
        )


def policy_remarks(config: Config, settings: AdaptiveSettings) -> list[str]:
    """Keys of POLICY that the config gives and that have no effect, as in the original."""
    if not settings.strategy.adaptive or settings.policy != "published":
        return []
    remarks = [
        f"POLICY.{key} {config.POLICY[key]} has no effect: the published policy has the "
        f"classifier of NETWORK ({config.NETWORK[key]})"
        for key in ("CLASSIFIER_TYPE", "CLASSIFIER_HIDDEN_SIZE", "CLASSIFIER_DROPOUT")
        if f"POLICY.{key}" in config.given and config.POLICY[key] != config.NETWORK[key]
    ]
    if config.POLICY.PARTIAL_PRETRAIN:
        remarks.append(
            f"POLICY.PARTIAL_PRETRAIN {config.POLICY.PARTIAL_PRETRAIN} has no effect: "
            "the published policy starts from random weights"
        )
    return remarks
