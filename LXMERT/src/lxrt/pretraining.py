"""LXMERT's pretraining: masked words, masked regions, matching, question answering.

Shape legend: B batch, T tokens, R regions, F feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.runtime import Runtime
from common.task import StepOutput, TaskBatch, Validation
from common.text import Tokenizer
from common.training import iterate
from common.vqa_data import VQABatch, VQADataset
from common.vqa_task import sample_key
from lxrt.losses import IGNORED, pretraining_losses

MASK_SHARE, RANDOM_SHARE = 0.8, 0.1


@dataclass(frozen=True)
class Objectives:
    """Which objectives are trained, and how much is masked.

    Attributes:
        matched, mask_lm, obj_predict, qa: upstream's --taskMatched, --taskMaskLM,
            --taskObjPredict, --taskQA.
        visual_losses: any of obj, attr, feat.
        word_mask_rate, obj_mask_rate: shares of words and of regions, 0..1.
    """

    matched: bool = True
    mask_lm: bool = True
    obj_predict: bool = True
    qa: bool = True
    visual_losses: tuple[str, ...] = ("obj", "attr", "feat")
    word_mask_rate: float = 0.15
    obj_mask_rate: float = 0.15


def mask_words(ids: Tensor, mask: Tensor, rate: float, tokenizer: Tokenizer,
               generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mask word pieces: 80 % [MASK], 10 % a random piece, 10 % kept.

    Args:
        ids, mask: (B, T); the first and the last token of a sentence are never masked.

    Returns:
        Masked ids (B, T), and labels (B, T): the original id where masked, else -1.
    """
    lengths = mask.sum(1, keepdim=True)
    places = torch.arange(ids.shape[1])[None]
    inner = (places > 0) & (places < lengths - 1)
    chosen = inner & (torch.rand(ids.shape, generator=generator) < rate)
    how = torch.rand(ids.shape, generator=generator)
    random_ids = torch.randint(0, len(tokenizer), ids.shape, generator=generator)
    masked = torch.where(chosen & (how < MASK_SHARE), tokenizer.mask_id, ids)
    replaced = chosen & (how >= MASK_SHARE) & (how < MASK_SHARE + RANDOM_SHARE)
    return (torch.where(replaced, random_ids, masked),
            torch.where(chosen, ids, torch.full_like(ids, IGNORED)))


def mask_regions(features: Tensor, present: Tensor, others: Tensor, rate: float,
                 generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mask regions: 80 % zeros, 10 % a region of another image, 10 % kept.

    Args:
        features: (B, R, F). present: (B, R) bool. others: (N, F), regions to replace with.

    Returns:
        Masked features (B, R, F), and which were masked, (B, R) of 1 / 0.
    """
    chosen = present & (torch.rand(present.shape, generator=generator) < rate)
    how = torch.rand(present.shape, generator=generator)
    picked = others[torch.randint(0, len(others), present.shape, generator=generator)]
    zeroed = chosen & (how < MASK_SHARE)
    replaced = chosen & (how >= MASK_SHARE) & (how < MASK_SHARE + RANDOM_SHARE)
    masked = torch.where(zeroed[..., None], torch.zeros_like(features), features)
    return torch.where(replaced[..., None], picked, masked), chosen.to(features.dtype)


class PretrainingTask:
    """Sentences with images; everything random is keyed by (seed, epoch, batch)."""

    def __init__(self, train: VQADataset, heldout: VQADataset, tokenizer: Tokenizer,
                 objectives: Objectives, runtime: Runtime, seed: int, eval_batch_size: int = 256,
                 progress: bool = True) -> None:
        self.train, self.heldout, self.tokenizer = train, heldout, tokenizer
        self.objectives, self.runtime, self.seed = objectives, runtime, seed
        self.eval_batch_size, self.progress = eval_batch_size, progress

    def __len__(self) -> int:
        return len(self.train)

    def read(self, indices: Sequence[int], epoch: int) -> TaskBatch:
        """The training sentences at some places, masked and mismatched for this epoch."""
        return self.draw(self.train, indices, epoch)

    def draw(self, data: VQADataset, indices: Sequence[int], epoch: int) -> TaskBatch:
        """Mask and mismatch the examples at some places."""
        generator = torch.Generator().manual_seed(
            ((self.seed * 1_000_003 + epoch) * 1_000_003 + indices[0]) % 2**63)
        batch = data.read(indices)
        sentences, matched = self._sentences(data, batch, generator)
        ids, mask = self.tokenizer.encode(sentences)
        labels: dict[str, Tensor] = {}
        goals = self.objectives
        if goals.matched:
            labels["matched_label"] = matched
        if goals.mask_lm:
            ids, labels["word_labels"] = mask_words(ids, mask, goals.word_mask_rate,
                                                    self.tokenizer, generator)
        features = batch.features
        if goals.obj_predict:
            others = data.read(torch.randint(0, len(data), (len(indices),),
                                             generator=generator).tolist())
            pool = others.features[others.region_mask]
            features, masked = mask_regions(features, batch.region_mask, pool,
                                            goals.obj_mask_rate, generator)
            labels |= self._region_labels(batch, masked)
        if goals.qa:
            target = batch.target
            if target is None:
                target = torch.zeros(len(batch), len(data.vocabulary))
            labels["answer_label"] = answer_labels(target, matched, generator)
        regions = None if bool(batch.region_mask.all()) else batch.region_mask.long()
        inputs = {"input_ids": ids, "input_mask": mask, "features": features,
                  "boxes": batch.boxes, "region_mask": regions}
        return TaskBatch([sample_key(q) for q in batch.question_ids], inputs, labels)

    def _sentences(self, data: VQADataset, batch: VQABatch,
                   generator: torch.Generator) -> tuple[list[str], Tensor]:
        """Half of the sentences replaced by one about another image; labels (B,), 1 = matched."""
        matched = torch.ones(len(batch), dtype=torch.int64)
        sentences = list(batch.questions)
        if not self.objectives.matched:
            return sentences, matched
        for place in (torch.rand(len(batch), generator=generator) < 0.5).nonzero().flatten():
            other = data.examples[int(torch.randint(0, len(data), (1,), generator=generator))]
            if other.image_id != batch.image_ids[place]:
                sentences[place] = other.question
                matched[place] = 0
        return sentences, matched

    def _region_labels(self, batch: VQABatch, masked: Tensor) -> dict[str, Tensor]:
        wanted = self.objectives.visual_losses
        labels: dict[str, Tensor] = {}
        if "obj" in wanted:
            labels |= {"obj_labels": batch.object_ids, "obj_conf": batch.object_conf}
        if "attr" in wanted:
            labels |= {"attr_labels": batch.attribute_ids, "attr_conf": batch.attribute_conf}
        if "feat" in wanted:
            labels |= {"feat_target": batch.features, "feat_mask": masked}
        return labels

    def step(self, model: nn.Module, batch: TaskBatch) -> StepOutput:
        """All losses; the score is the number of right answers among the labelled ones."""
        outputs = model(**batch.inputs)
        losses = pretraining_losses(outputs, batch.labels)
        right, count = 0.0, len(batch.samples)
        if "answer_label" in batch.labels:
            labelled = batch.labels["answer_label"] != IGNORED
            guesses = outputs["answers"].detach().argmax(1)
            right = float((guesses == batch.labels["answer_label"])[labelled].sum())
            count = int(labelled.sum())
        return StepOutput(losses, right, count)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Validation:
        """Mean losses over the held-out part; the score is minus their sum."""
        model.eval()
        sums: dict[str, float] = {}
        right = labelled = 0.0
        for indices in tqdm(list(iterate(len(self.heldout), self.eval_batch_size)), leave=False,
                            desc="held out", disable=not self.progress):
            batch = self.draw(self.heldout, indices, 0).to(self.runtime.device)
            with self.runtime.autocast():
                found = self.step(model, batch)
            for name, loss in found.losses.items():
                sums[name] = sums.get(name, 0.0) + float(loss) * len(indices)
            right, labelled = right + found.score_sum, labelled + found.count
        losses = {name: value / len(self.heldout) for name, value in sums.items()}
        details = {"heldout_losses": losses,
                   "heldout_qa_accuracy": 100 * right / max(1.0, labelled)}
        return Validation(-sum(losses.values()), details)


def answer_labels(target: Tensor, matched: Tensor, generator: torch.Generator) -> Tensor:
    """One answer per sentence, drawn from its normalised soft scores (B, A); (B,).

    -1 where the sentence has no answer or does not belong to the image.
    """
    has = (target.sum(1) > 0) & (matched == 1)
    scores = torch.where(has[:, None], target, torch.ones_like(target))
    drawn = torch.multinomial(scores, 1, generator=generator).squeeze(1)
    return torch.where(has, drawn, torch.full_like(drawn, IGNORED))
