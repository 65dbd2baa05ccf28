"""The optimisers of ViLBERT's finetuning.

As in the original but for one of its faults: weights decay, and biases and LayerNorms do not (it
was the other way round). The recipe of small models has a linear schedule.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from common.adapt.adapting import named_parameter_groups
from common.adapt.attention import without_attention
from common.tasks.finetuning import MakeOptimizers, Optimizers, Run, make_optimizers
from common.training.optim import make_optimizer, optimizer_key
from vilbert.loading import CLASSIFIER, is_of_bert
from vilbert.options import CLASSIFIER_LR, ModelOptions

DROPS = (12, 16)  # epochs from which on the rate is a tenth of what it was
LARGEST_NORM = 1.0  # of the gradient of each tensor


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float,
    classifier_lr: float,
    others_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Groups of parameters that share learning rate and weight decay.

    Args:
        named: trainable parameters.
        lr: of BERT's and, without `others_lr`, of all other parameters.
        weight_decay: of weights; biases and LayerNorms do not decay.
        classifier_lr: of the answer head.
        others_lr: of what is not BERT's (`--vision_scratch`).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        rate = others_lr if others_lr is not None and not is_of_bert(name) else lr
        rate = classifier_lr if name.startswith(CLASSIFIER) else rate
        decay = 0.0 if name.endswith("bias") or "LayerNorm" in name else weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": found, "lr": rate, "weight_decay": decay}
        for (rate, decay), found in groups.items()
    ]


def optimizers_of(options: ModelOptions, size: str) -> MakeOptimizers:
    """What makes the optimisers of a run; see `Run.optimizers`."""

    def make(run: Run, total_steps: int) -> Optimizers:
        recipe = run.options.recipe
        _, policy = make_optimizers(run, total_steps)
        named, of_attention = without_attention(
            named_parameter_groups(run.model)["trainable"], run.options.loop.attention_lr
        )
        groups = parameter_groups(
            named,
            recipe.lr,
            recipe.weight_decay,
            # The small model's classifier is pretrained like the rest.
            recipe.lr if size == "small" else CLASSIFIER_LR,
            CLASSIFIER_LR if options.vision_scratch else None,
        )
        groups += of_attention
        clipped = optimizer_key(recipe.optim) == "bert"
        more: dict[str, Any] = {"max_grad_norm": LARGEST_NORM} if clipped else {}
        if recipe.cycle_steps or (size == "small" and not clipped):
            main = make_optimizer(
                recipe.optim, groups, recipe.lr, total_steps, **recipe.schedule, **more
            )
            return main, policy
        steps = total_steps // recipe.epochs
        epochs = [run.order.total(n) if run.order else n * steps for n in DROPS]
        main = make_optimizer(
            recipe.optim,
            groups,
            recipe.lr,
            total_steps,
            recipe.warmup,
            schedule="steps",
            milestones=tuple(epochs),
            **more,
        )
        return main, policy

    return make
