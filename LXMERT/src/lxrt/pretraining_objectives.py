"""Which of LXMERT's pretraining objectives are trained, and which parameters they reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from common.adapt.adapting import freeze_dead
from common.adapt.steps import Layer, live_steps
from common.errors import ConfigError
from lxrt.modeling import PretrainingModel

VISUAL_LOSSES = ("obj", "attr", "feat")


@dataclass(frozen=True)
class Objectives:
    """What is trained, and how much is masked.

    Attributes:
        matched, mask_lm, obj_predict, qa: upstream's --taskMatched, --taskMaskLM,
            --taskObjPredict, --taskQA.
        visual_losses: any of obj, attr, feat; they count only with `obj_predict`.
        word_mask_rate, obj_mask_rate: shares of words and of regions, 0..1.
    """

    matched: bool = True
    mask_lm: bool = True
    obj_predict: bool = True
    qa: bool = True
    visual_losses: tuple[str, ...] = VISUAL_LOSSES
    word_mask_rate: float = 0.15
    obj_mask_rate: float = 0.15

    def __post_init__(self) -> None:
        unknown = [name for name in self.visual_losses if name not in VISUAL_LOSSES]
        if (
            unknown
            or not self.visual_losses
            or len(set(self.visual_losses)) < len(self.visual_losses)
        ):
            raise ConfigError(
                f"--visualLosses {','.join(self.visual_losses)!r}: give some of "
                f"{', '.join(VISUAL_LOSSES)}, each once, with commas between; "
                "without any of them leave out --taskObjPredict"
            )
        if not self.outputs:
            raise ConfigError("no pretraining objective is chosen")

    @property
    def regions(self) -> tuple[str, ...]:
        """The visual losses that are trained, in upstream's order."""
        return tuple(n for n in VISUAL_LOSSES if self.obj_predict and n in self.visual_losses)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs of `PretrainingModel` that they need."""
        return (
            tuple(
                name
                for name, wanted in (
                    ("words", self.mask_lm),
                    ("matched", self.matched),
                    ("answers", self.qa),
                )
                if wanted
            )
            + self.regions
        )

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses, in upstream's order."""
        first = [
            name
            for name, wanted in (("Mask_LM", self.mask_lm), ("Matched", self.matched))
            if wanted
        ]
        return (
            *first,
            *(name.capitalize() for name in self.regions),
            *(("QA",) if self.qa else ()),
        )


def train_outputs(model: PretrainingModel, outputs: Sequence[str]) -> None:
    """Compute only these outputs, and freeze the parameters that reach none of them.

    Every parameter that still is trainable then gets a gradient in every step, which training on
    several processes relies on.
    """
    wanted = set(outputs)
    pooled = bool(wanted & {"matched", "answers"})
    words, regions = "words" in wanted, bool(wanted & set(VISUAL_LOSSES))
    model.outputs = tuple(outputs)
    bert, encoder = model.bert, model.bert.encoder
    reads = (("lang",) if pooled or words else ()) + (("vision",) if regions else ())
    encoder.set_reads(reads, first=("lang",) if pooled and not words else ())
    freeze_dead(encoder.layers(), reads)
    needed = needed_inputs(encoder.layers(), reads)
    unused: list[nn.Module | None] = [
        module
        for module, used in (
            (bert.embeddings, "lang" in needed),
            (encoder.visn_fc, "vision" in needed),
            (bert.pooler, pooled),
            (model.cls.predictions.transform, words),
            (model.cls.seq_relationship, "matched" in wanted),
            (model.answer_head, "answers" in wanted),
        )
        if not used
    ]
    if model.obj_predict_head is not None:
        heads = model.obj_predict_head
        unused += [] if regions else [heads.transform]
        unused += [head for name, head in heads.decoder_dict.items() if name not in wanted]
    for module in unused:
        if module is not None:
            module.requires_grad_(False)
    model.cls.predictions.bias.requires_grad_(words)


def needed_inputs(layers: Sequence[Layer], reads: Sequence[str]) -> set[str]:
    """The slots before the first layer that the slots read at the end depend on."""
    needed = set(reads)
    for live in reversed(live_steps(layers, reads)[0]):
        for step in reversed(live):
            needed = (needed - set(step.writes)) | set(step.reads)
    return needed
