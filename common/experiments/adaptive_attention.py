"""Spans, entmax, LayerDrop and the strategies that skip or choose blocks, like for like.

Optimiser, schedule, data and epochs are the same in every row. Settings were not chosen on what is
reported: LayerDrop's rate is that of Fan et al. (2020), the weight of BlockDrop's budget the one
that held budgets on fewer questions (10: at a distance of 0.1 from it the loss is 0.1, about the
answer loss at the end), entmax' α and the learning rate of spans are the defaults. The weight of
the span loss was chosen with seed 11 on held-out training images; see the README of the backbone.
"""

from __future__ import annotations

from common.experiments.rows import Experiment, PrunedRow, Row

SPAN = ("--span-over", "keys", "--span-loss", "0.05")
LAYERDROP = "0.2"
HOLD = ("--target-rate-scale", "10")
# Layers that stay, of two language, two vision and two cross layers: text and image lose theirs
# before the cross layers, which each hold a layer of both. With stacks of two every_other, spread
# and 1 are the same rule: three layers stay.
DEPTHS = {
    5: "lang.1,vision.1,vision.2,cross.1,cross.2",
    4: "lang.1,vision.1,cross.1,cross.2",
    3: "every_other",
}
BLOCKS = 6
BUDGETS = {kept: kept / BLOCKS for kept in DEPTHS}


def _entmax(name: str) -> tuple[str, str]:
    return "--attention", name


def _budget(strategy: str, kept: int, verb: str) -> Row:
    """A strategy that is made to keep, or finetune, so many blocks in the mean."""
    share = f"{kept / BLOCKS:.3g}"
    return Row(
        strategy,
        ("--target-rate", share, *HOLD),
        f"{strategy}_{kept}",
        f"{strategy}, {verb} {kept} of {BLOCKS}",
        budget=BUDGETS[kept],
    )


def _pruned(source: str, title: str) -> list[PrunedRow]:
    return [
        PrunedRow(source, rule, f"{source}_pruned_{kept}", f"{title}, {kept} layers", BUDGETS[kept])
        for kept, rule in DEPTHS.items()
    ]


ADAPTIVE_ATTENTION = Experiment(
    "adaptive_attention",
    "easy-VQA, 2,000 finetuning questions, adaptive attention and LayerDrop",
    ("--dataset", "easy_vqa", "--questions", "2000", "--epochs", "15"),
    3,
    1.4,
    (
        Row("standard", (), "softmax", "softmax (standard)"),
        Row("standard", SPAN, "span", "span", 1.2),
        Row("standard", (*SPAN, "--span-policy"), "span_policy", "span, read from the pair", 1.3),
        Row("standard", _entmax("entmax"), "entmax", "entmax, α learned", 3.3),
        Row("standard", _entmax("entmax15"), "entmax15", "entmax, α = 1.5", 1.4),
        Row("standard", (*SPAN, *_entmax("entmax")), "span_entmax", "span + entmax", 3.5),
        Row("standard", ("--layerdrop", LAYERDROP), "LayerDrop", f"LayerDrop {LAYERDROP}", 0.9),
        *(_budget("BlockDrop", kept, "keeps") for kept in DEPTHS),
        Row("SpotTune_Block", ("--policy-training", "published")),
        _budget("SpotTune_Block", 3, "finetunes"),
    ),
    pruned=(
        *_pruned("softmax", "softmax, pruned without LayerDrop"),
        *_pruned("LayerDrop", f"LayerDrop {LAYERDROP}, pruned"),
    ),
    measured=True,
)
