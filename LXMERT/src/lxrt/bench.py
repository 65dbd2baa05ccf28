"""What `make bench` measures of LXMERT: random weights at base width, real lengths of questions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from common.modules.losses import first_answer_loss
from common.runs.backbones import QUESTIONS, BenchModel, BenchSettings
from lxrt.hf_folder import THEIR_NAMES
from lxrt.modeling import VQAModel
from lxrt.sizes import LxmertConfig

PADDED = 20
SHORTEST, LONGEST = 8, 14
REGIONS = 36


def bench_model(settings: BenchSettings) -> BenchModel:
    """LXMERT-base and one batch: 8–14 word pieces, padded to 20 only for `transformers`.

    `settings.layers` limits the layers of every stack.
    """
    config = bench_config(settings.layers)
    inputs = bench_inputs(config, settings.batch, settings.seed)
    ours = inputs | {name: inputs[name][:, :LONGEST] for name in ("input_ids", "input_mask")}
    theirs = {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["input_mask"],
        "visual_feats": inputs["features"],
        "visual_pos": inputs["boxes"],
    }
    description = (
        f"LXMERT-base, {config.l_layers}-{config.r_layers}-{config.x_layers} language, "
        f"vision and cross layers, {settings.batch} questions of {SHORTEST}–{LONGEST} "
        f"word pieces, {REGIONS} regions, dropout 0.1 in training"
    )
    return BenchModel(
        description,
        lambda: VQAModel(config),
        ours,
        first_answer_loss,
        lambda: ReferenceAnswers(config),
        "transformers",
        theirs,
        questions=QUESTIONS,
    )


def bench_config(layers: int | None) -> LxmertConfig:
    """Base size with at most so many layers in every stack."""
    config = LxmertConfig()
    return (
        config
        if layers is None
        else replace(
            config,
            **{
                name: min(layers, getattr(config, name))
                for name in ("l_layers", "x_layers", "r_layers")
            },
        )
    )


def bench_inputs(config: LxmertConfig, batch: int, seed: int) -> dict[str, Tensor]:
    """Random questions padded to 20 word pieces, one of them as long as they get, and regions."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (batch,), generator=generator)
    lengths[0] = LONGEST
    mask = (torch.arange(PADDED) < lengths[:, None]).long()
    words = torch.randint(1, config.vocab_size, (batch, PADDED), generator=generator)
    return {
        "input_ids": words * mask,
        "input_mask": mask,
        "features": torch.randn(batch, REGIONS, config.visual_feat_dim, generator=generator).relu(),
        "boxes": torch.rand(batch, REGIONS, config.visual_pos_dim, generator=generator),
    }


class ReferenceAnswers(nn.Module):
    """The answer logits of `transformers`' LXMERT with random weights."""

    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        import transformers

        sizes = {THEIR_NAMES.get(name, name): value for name, value in config.to_dict().items()}
        self.model = transformers.LxmertForQuestionAnswering(transformers.LxmertConfig(**sizes))

    def forward(self, **inputs: Tensor) -> Tensor:
        """Inputs of `LxmertModel` (B, …) -> answer logits (B, A)."""
        return self.model(**inputs).question_answering_score
