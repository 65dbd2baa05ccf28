"""What a checkpoint remembers of its strategy: enough to adapt a model again as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired

from torch import nn
from typing_extensions import TypedDict

from common.adapt.adapting import adapt
from common.adapt.attention import set_attention
from common.adapt.encoder import AdaptiveOptions
from common.adapt.strategies import Strategy, find_strategy
from common.data.annotations import answer_digest
from common.data.tokenizer import Tokenizer
from common.errors import CheckpointError, DataError
from common.modules.attention import AttentionOptions
from common.reading import checked
from common.training.checkpoint import check_compatible

KEY = "strategy_flags"  # in the meta of a checkpoint
ATTENTION = "attention"  # in that entry; None: softmax over all keys
_OWN = ("strategy", "policy", "policy_eval", "trainable_layers", "frozen_layers")


class FeatureMeta(TypedDict):
    """The region features that a model reads."""

    width: int
    detector: str
    digest: NotRequired[str]
    boxes: NotRequired[list[int]]
    rule: NotRequired[str]
    precision: NotRequired[str]


class Digest(TypedDict):
    """Number and checksum of a list."""

    count: int
    sha256: str


class StrategyMeta(TypedDict):
    """The entry `KEY`; a backbone adds sizes of its policy network."""

    strategy: str
    policy: str
    policy_eval: str
    trainable_layers: str | None
    frozen_layers: str | list[int | str] | None
    attention: NotRequired[dict[str, str | float | bool] | None]


class FinetunedMeta(TypedDict):
    """The meta of a finetuned checkpoint; see `finetuned_meta`."""

    backbone: str
    task: str
    strategy: str
    policy: str | None
    size: str
    config: dict[str, Any]
    features: FeatureMeta
    answers: Digest
    vocabulary: Digest
    strategy_flags: StrategyMeta


def checked_meta(meta: dict[str, Any], path: Path | str) -> dict[str, Any]:
    """The meta of a finetuned checkpoint, as it is.

    Raises:
        CheckpointError: a key is missing or of another type.
    """
    try:
        checked(meta, FinetunedMeta, f"{path}: meta", "use another checkpoint")
    except DataError as error:
        raise CheckpointError(str(error)) from None
    return meta


@dataclass(frozen=True)
class StrategyRecord:
    """A strategy with everything that shapes an adapted model.

    Attributes:
        strategy: a name that `adapt` knows (`SpotTune_Block`, `last_4`).
        policy: name of the policy network; without a meaning where nothing is decided.
        policy_eval: how decisions are made in evaluation.
        trainable_layers: `last:K`, for LastK.
        frozen_layers: for FrozenLayers, numbers from 1 or names; `3,4` or a sequence.
        policy_sizes: sizes of the published policy network, under the backbone's name for them.
        attention: how all attention modules weigh keys.
    """

    strategy: str = "standard"
    policy: str = "small"
    policy_eval: str = "argmax"
    trainable_layers: str | None = None
    frozen_layers: str | Sequence[int | str] | None = None
    policy_sizes: Mapping[str, Any] = field(default_factory=dict)
    attention: AttentionOptions = field(default_factory=AttentionOptions)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> StrategyRecord:
        """Read it from the meta of a finetuned checkpoint."""
        saved = meta[KEY]
        sizes = {k: value for k, value in saved.items() if k not in (*_OWN, ATTENTION)}
        attention = AttentionOptions(**(saved.get(ATTENTION) or {}))
        return cls(**{key: saved[key] for key in _OWN}, policy_sizes=sizes, attention=attention)

    @classmethod
    def chosen(
        cls, given: Mapping[str, Any], saved: StrategyRecord | None, sizes: Mapping[str, Any]
    ) -> StrategyRecord:
        """What shapes an adapted model: the flags, else a checkpoint's record, else the defaults.

        Args:
            given: the flags by the names of the attributes; None where one is not given.
            saved: of the checkpoint that is loaded; a record of another strategy says nothing.
            sizes: of the published policy network.
        """
        row, k = find_strategy(given["strategy"] or (saved.strategy if saved else "standard"))
        attention = given.get(ATTENTION) or (saved.attention if saved else AttentionOptions())
        if saved is not None and saved.row is not row:
            saved = None
        if k is None and saved is not None:
            k = find_strategy(saved.strategy)[1]

        def value(name: str) -> Any:
            return given[name] if given[name] is not None or saved is None else getattr(saved, name)

        return cls(
            row.name if k is None else f"last_{k}",
            value("policy") or "small",
            value("policy_eval") or "argmax",
            value("trainable_layers"),
            value("frozen_layers"),
            sizes,
            attention,
        )

    def is_named(self, strategy: str | None) -> bool:
        """Whether a flag means this strategy; without the flag (None) it is."""
        return strategy is None or find_strategy(strategy)[0] is self.row

    def to_meta(self) -> dict[str, Any]:
        """The entry `KEY` of a checkpoint's meta; JSON."""
        frozen = self.frozen_layers
        return {
            "strategy": self.strategy,
            "policy": self.policy,
            "policy_eval": self.policy_eval,
            "trainable_layers": self.trainable_layers,
            "frozen_layers": frozen if frozen is None or isinstance(frozen, str) else list(frozen),
            ATTENTION: None if self.attention.plain else _attention_meta(self.attention),
            **self.policy_sizes,
        }

    @property
    def row(self) -> Strategy:
        """The strategy's row in the table."""
        return find_strategy(self.strategy)[0]

    @property
    def chosen_policy(self) -> str | None:
        """Name of the policy network; None where nothing is decided."""
        return self.policy if self.row.adaptive else None

    def adapt(
        self, model: nn.Module, initial_share: float = 0.5, options: AdaptiveOptions | None = None
    ) -> None:
        """Give a model this strategy, after its mechanism of attention.

        Args:
            model: with pretrained weights loaded, or whose weights are loaded after this.
            initial_share: probability of decision 1 before training.
            options: executors and temperature; how decisions are evaluated is the record's.
        """
        set_attention(model, self.attention)
        adapt(
            model,
            self.strategy,
            self.policy,
            trainable_layers=self.trainable_layers,
            frozen_layers=self.frozen_layers,
            initial_share=initial_share,
            options=replace(options or AdaptiveOptions(), policy_eval=self.policy_eval),
        )

    def plain(self) -> StrategyRecord:
        """That of the plain model which is left when everything has been decided."""
        return replace(
            self,
            strategy="standard",
            policy_eval="argmax",
            trainable_layers=None,
            frozen_layers=None,
        )


def has_own_names(meta: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has more weights than the plain model: twins, a policy, mechanisms of
    attention; such a file is loaded into a model that is adapted already."""
    known = find_strategy(meta.get("strategy", "standard"))[0].adaptive
    return known or bool(meta.get(KEY, {}).get(ATTENTION))


def _attention_meta(attention: AttentionOptions) -> dict[str, Any]:
    """Without what earlier versions did not know, where it says nothing."""
    later = ("span_policy", "batch")
    return {name: value for name, value in asdict(attention).items() if value or name not in later}


def check_finetuned(
    found: Mapping[str, Any],
    meta: Mapping[str, Any],
    path: Path,
    own_names: bool = True,
    any_detector: bool = False,
    **more: Any,
) -> list[str]:
    """Refuse a checkpoint of another model before that model is built.

    Dropout, and how frozen layers were chosen, may differ between training and use.

    Args:
        found: the meta of the checkpoint.
        meta: of the model that it is loaded into.
        path: of the file.
        own_names: False: a plain model, see `has_own_names`, is loaded and adapted afterwards, so
            strategy and mechanism of attention may be others.
        any_detector: region features may be those of another detector.
        more: entries of a backbone that have to agree too.

    Returns:
        What is worth saying of the features, see `check_compatible`.

    Raises:
        CheckpointError: says what differs.
    """
    keys = ["backbone", "size", "answers", "vocabulary", "features"]
    keys += ["strategy", "policy"] if own_names else []
    mechanism = {KEY: {ATTENTION: meta[KEY][ATTENTION]}} if own_names else {}
    wanted = {key: meta[key] for key in keys} | mechanism | more
    return check_compatible(found, wanted, path, any_detector)


def finetuned_meta(
    backbone: str,
    record: StrategyRecord,
    size: str,
    config: Mapping[str, Any],
    features: Mapping[str, Any],
    answers: Sequence[str],
    tokenizer: Tokenizer,
    **more: Any,
) -> dict[str, Any]:
    """What a checkpoint of a VQA model remembers, enough to build it again and to tell it apart.

    Args:
        backbone, size: names.
        record: of the strategy.
        config: sizes of the model.
        features: of the region features, see `common.features.origin.origin_of`.
        answers: in the order of the answer head.
        tokenizer: of the questions.
        more: what the backbone needs beside it.
    """
    return {
        "backbone": backbone,
        "task": "vqa",
        "strategy": record.row.name,
        "policy": record.chosen_policy,
        "size": size,
        "config": config,
        "features": features,
        "answers": answer_digest(list(answers)),
        "vocabulary": tokenizer.digest(),
        KEY: record.to_meta(),
        **more,
    }
