"""train.py: LXMERT with adaptive spans, entmax and LayerDrop, by the flags of its project.

Everything is done by the shared command; here are its model, its recipes and its log.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from common.data.datasets import Dataset
from common.features.sources import FeatureSources
from common.tasks.evaluation import FinetuneTask
from common.tasks.finetuning import epoch_lines
from common.tasks.vqa_command import Built, Say, VQAOptions, VQAProgram
from lxrt.adaptive_options import (
    RECIPES,
    AdaptiveModelOptions,
    adaptive_model_options,
    adaptive_parser,
    add_options,
    settle,
)
from lxrt.adaptive_params import STACKS, param_lines
from lxrt.building import build, chosen_size, make_inputs
from lxrt.options import TINY, ModelOptions
from lxrt.sizes import HOME

Options = VQAOptions[AdaptiveModelOptions]
SAMPLED = 512  # questions that the mean number of keys is of
# Published name of an attention module, its name in the record, and the streams of its keys; the
# published ones count from 0.
MODULES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Self Language", r"lang\.(\d+)\.head", ("lang",)),
    ("Cross", r"cross\.(\d+)\.cross\.head", ("vision", "lang")),
    ("Cross Self Language", r"cross\.(\d+)\.lang\.head", ("lang",)),
    ("Cross Self Vision", r"cross\.(\d+)\.vision\.head", ("vision",)),
    ("Self Vision", r"vision\.(\d+)\.head", ("vision",)),
)


@dataclass(frozen=True)
class AdaptiveProgram(VQAProgram[AdaptiveModelOptions]):
    """The shared command with the published flags."""

    def parser(self) -> argparse.ArgumentParser:
        """The parser of the command."""
        return adaptive_parser(super().parser())

    def train(self, options: Options) -> dict[str, Any]:
        """Finetune and write result.json."""
        result = super().train(options)
        if options.model.measure_flops and result:
            print(flop_lines(result))
        return result


def flop_lines(result: dict[str, Any]) -> str:
    """What --measure-flops says of a finished run."""
    found, zeros = result["flops"], result["attention_zero_share"]
    return (
        f"FLOPs: {found['per_sample'] / 1e9:.4g} GFLOP per sample in evaluation, mean of "
        f"{found['samples']:,} validation questions, without what spans, pruning and skipping save"
        f"\nattention weights that are exactly 0: {'none' if not zeros else f'{zeros:.1%}'}"
    )


def build_adaptive(options: Options, dataset: Dataset, features: FeatureSources, say: Say) -> Built:
    """The model, whose checkpoints remember `params` and `config`."""
    built = build(cast(VQAOptions[ModelOptions], options), dataset, features, say)
    attention, loop, sizes = built.record.attention, options.base.loop, built.meta["config"]
    spans = attention.span != "none"
    layers = (sizes[f"{stack}_layers"] for stack in ("l", "x", "r"))
    params = {
        "adapt_span_enabled": spans,
        "adapt_span_loss_coeff": loop.span_loss,
        "adapt_span_ramp": attention.ramp if spans else None,
        "adapt_span_init": attention.initial_span if spans else None,
        "sparse_enabled": attention.normaliser == "entmax",
        "layer_sizes": dict(zip(STACKS, layers, strict=True)),
        "from_scratch": options.model.weights.from_scratch,
        "layerdrop_enabled": loop.layerdrop is not None,
        "layerdrop_num_layers": loop.layerdrop.count if loop.layerdrop else 0,
        "bs": PROGRAM.finetuning(options, built.size).recipe.batch_size,
    }
    config = {"load_model": options.model.load_model}
    shown = config | {"measure_flops": options.model.measure_flops}  # which changes no model
    say(param_lines(params, shown, options.model.given))
    built.meta |= {"params": params, "config_of_run": config}
    return built


def attention_lines(record: dict[str, Any], keys: dict[str, float]) -> str:
    """Spans and α of an epoch's record as the adaptive LXMERT writes them: a line for each module
    that reaches an answer, means over its heads.

    Args:
        record: `{layer.component: {"span": shares of the keys, "alpha": …}}`, of each head.
        keys: mean numbers of keys, by stream.
    """
    found = []
    for title, pattern, streams in MODULES:
        for name, values in record.items():
            if (place := re.fullmatch(pattern, name)) is None:
                continue
            parts = []
            if "span" in values:
                share = sum(values["span"]) / len(values["span"])
                parts.append(" / ".join(f"{share * keys[stream]:.2f}" for stream in streams))
            if "alpha" in values:
                parts.append(f"α {sum(values['alpha']) / len(values['alpha']):.3f}")
            found.append(f"{title} {int(place[1]) - 1} {', '.join(parts)}")
    return "\n".join(found)


def lines_after_epoch(task: FinetuneTask, built: Built) -> Callable[[dict[str, Any]], str]:
    """What is logged after an epoch; spans are in keys of a question of mean length."""
    keys: dict[str, float] = {}

    def lines(values: dict[str, Any]) -> str:
        record = values.get("attention")
        if not record:
            return epoch_lines(values)
        if not keys:
            keys.update(mean_keys(task, built))
        said = (
            f"means over the heads, spans in keys, of {keys['lang']:.1f} word pieces and "
            f"{keys['vision']:.1f} regions on average; Cross: regions / word pieces"
        )
        loss = values["train_losses"].get("span")
        loss_line = "" if loss is None else f"\nAdapt Span Loss {loss:.4f}"
        first, *others = epoch_lines(values).strip("\n").split("\n")
        attention = attention_lines(record, keys)
        return "\n".join([f"\n{first}{loss_line}", f"({said})", attention, *others])

    return lines


def mean_keys(task: FinetuneTask, built: Built) -> dict[str, float]:
    """Mean numbers of word pieces and regions of held-out questions."""
    data = task.heldout
    step = max(1, len(data) // SAMPLED)
    batch = data.read(range(0, len(data), step))
    inputs = make_inputs(built.tokenizer, built.meta)(batch)
    words = inputs["input_mask"]
    assert words is not None
    return {
        "lang": float(words.sum(1).double().mean()),
        "vision": float(batch.region_mask.sum(1).double().mean()),
    }


def split_to_test(dataset: Dataset, name: str) -> str:
    """The split that --test means: `test`, where there is none the one that is reported."""
    if name == "test" and name not in dataset.kind.splits:
        return dataset.kind.valid
    return dataset.split_to_test(name)


PROGRAM = AdaptiveProgram(
    home=HOME,
    script="train.py",
    description="Finetune and test LXMERT with adaptive attention spans, entmax and LayerDrop, by "
    "the flags of the adaptive LXMERT and all those of src/tasks/vqa.py.",
    add_options=add_options,
    model_options=adaptive_model_options,
    size=chosen_size,
    build=build_adaptive,
    make_inputs=make_inputs,
    recipes=RECIPES,
    tiny=TINY,
    settle=settle,
    split=split_to_test,
    epoch_lines=lines_after_epoch,
)
main = PROGRAM.main()
