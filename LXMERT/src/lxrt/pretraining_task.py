"""LXMERT's pretraining: masked words, masked regions, matching, question answering.

Shape legend: B batch, T tokens, R regions, F feature width, K answers of a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from common.data.tokenizer import Tokenizer
from common.errors import ConfigError, DataError
from common.features.store import RegionBatch
from common.modules.losses import IGNORED
from common.tasks.pretraining import heldout_means
from common.training.means import Means
from common.training.runtime import Runtime
from common.training.task import StepOutput, TaskBatch, Validation
from lxrt.pretraining_data import PretrainingData
from lxrt.pretraining_losses import pretraining_losses
from lxrt.pretraining_masking import (
    ANSWER,
    MATCHING,
    PICKED_IMAGE,
    PICKED_REGION,
    Draws,
    choose_regions,
    draw_answer,
    mask_words,
)
from lxrt.pretraining_objectives import Objectives
from lxrt.pretraining_sentences import Sentences

REGION_LOSSES = ("Obj", "Attr", "Feat")


class PretrainingTask:
    """Sentences with images; everything random is keyed by (seed, epoch, sentence)."""

    def __init__(
        self,
        data: PretrainingData,
        tokenizer: Tokenizer,
        objectives: Objectives,
        classes: Mapping[str, int],
        runtime: Runtime,
        seed: int,
        eval_batch_size: int = 256,
        workers: int = 0,
        progress: bool = True,
    ) -> None:
        """Put data and objectives together.

        Args:
            classes: numbers of object and attribute classes that the model has (`obj`, `attr`).
            seed: of everything that is drawn.
            workers: processes that read batches for validation.

        Raises:
            ConfigError: an objective for which the data have nothing.
        """
        self.train, self.heldout, self.features = data.train, data.heldout, data.features
        self.tokenizer, self.objectives, self.classes = tokenizer, objectives, dict(classes)
        self.runtime, self.seed = runtime, seed
        self.eval_batch_size, self.workers, self.progress = eval_batch_size, workers, progress
        if objectives.qa and not len(self.train.labels):
            raise ConfigError(
                "no training sentence has a known answer: leave out --taskQA, or "
                "use data with questions"
            )
        for part, name in ((self.train, "training"), (self.heldout, "held-out")):
            if objectives.matched and len(part.used_images()) < 2:
                raise ConfigError(
                    f"all {name} sentences are about one image, so none can be "
                    "replaced by one about another: use more images, or leave out "
                    "--taskMatched"
                )

    def __len__(self) -> int:
        return len(self.train)

    def read(self, indices: Sequence[int], epoch: int) -> TaskBatch:
        """The training sentences at some places, masked and mismatched for this epoch."""
        return self.draw(self.train, indices, epoch)

    def draw(self, data: Sentences, indices: Sequence[int], epoch: int) -> TaskBatch:
        """Mask and mismatch the sentences at some places."""
        goals, draws = self.objectives, Draws(self.seed, epoch, indices)
        regions = self.features.read([data.image_id(i) for i in indices])
        rows, matched = self._rows(data, indices, draws)
        ids, mask = self.tokenizer.encode([data.sentence(row) for row in rows])
        inputs: dict[str, Tensor | None] = {
            "input_mask": mask,
            "boxes": regions.normalised_boxes(),
            "features": regions.features,
            "region_mask": None if bool(regions.mask.all()) else regions.mask.long(),
        }
        labels: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        if goals.matched:
            labels["matched_label"] = matched
        if goals.mask_lm:
            ids, words = mask_words(ids, mask, goals.word_mask_rate, self.tokenizer, draws)
            # Only the masked places get logits: the vocabulary is large.
            places = words != IGNORED
            inputs["word_places"] = places
            labels["word_labels"] = words
            weights["Mask_LM"] = float(places.sum())
        if goals.regions:
            inputs["features"], masked = self._masked(regions, draws)
            labels |= self._region_labels(regions, masked)
            count = float(regions.mask.sum())
            weights |= {name: count for name in REGION_LOSSES if name in goals.losses}
        if goals.qa:
            labels |= self._answers(data, indices, matched, draws)
            weights["QA"] = float((labels["answer_label"] != IGNORED).sum())
        inputs["input_ids"] = ids
        return TaskBatch(list(indices), inputs, labels, weights=weights)

    def _rows(
        self, data: Sentences, indices: Sequence[int], draws: Draws
    ) -> tuple[list[int], Tensor]:
        """Half of the sentences replaced by ones about other images; labels (B,), 1 = matched."""
        matched = torch.ones(len(indices), dtype=torch.int64)
        if not self.objectives.matched:
            return list(indices), matched
        numbers = draws.fine(MATCHING, 2)
        matched[numbers[:, 0] < 0.5] = 0
        others = data.of_other_images(indices, numbers[:, 1])
        return [
            row if own else other
            for row, other, own in zip(indices, others, matched.tolist(), strict=True)
        ], matched

    def _masked(self, regions: RegionBatch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Features (B, R, F) with some regions masked, and which were masked, (B, R) of 1 / 0."""
        chosen, blanked, replaced = choose_regions(
            regions.mask, self.objectives.obj_mask_rate, draws
        )
        features = torch.where(blanked[..., None], 0.0, regions.features)
        if bool(replaced.any()):
            features[replaced] = self._random_regions(replaced, draws)
        return features, chosen.to(features.dtype)

    def _random_regions(self, places: Tensor, draws: Draws) -> Tensor:
        """A random region of a random training image for each of N places in (B, R): (N, F)."""
        width = places.shape[1]
        rows = (draws.fine(PICKED_IMAGE, width)[places] * len(self.train)).long().tolist()
        images = [self.train.image_id(row) for row in rows]
        place = {image: number for number, image in enumerate(dict.fromkeys(images))}
        found = self.features.read(list(place))
        where = torch.tensor([place[image] for image in images])
        counts = found.mask.sum(1)[where]
        which = (draws.uniform(PICKED_REGION, width)[places].double() * counts).long()
        return found.features[where, which]

    def _region_labels(self, regions: RegionBatch, masked: Tensor) -> dict[str, Tensor]:
        wanted = self.objectives.regions
        labels: dict[str, Tensor] = {}
        for name, ids, confidence in (
            ("obj", regions.object_ids, regions.object_conf),
            ("attr", regions.attribute_ids, regions.attribute_conf),
        ):
            if name in wanted:
                assert ids is not None and confidence is not None  # see `region_classes`
                self._check_classes(name, ids, regions.image_ids)
                labels |= {f"{name}_labels": ids, f"{name}_conf": confidence}
        if "feat" in wanted:
            labels |= {"feat_target": regions.features, "feat_mask": masked}
        if not bool(regions.mask.all()):
            labels["region_present"] = regions.mask.to(masked.dtype)
        return labels

    def _check_classes(self, name: str, ids: Tensor, image_ids: Sequence[str]) -> None:
        wrong = ((ids < 0) | (ids >= self.classes[name])).any(1)
        if bool(wrong.any()):
            image = int(wrong.nonzero()[0])
            raise DataError(
                f"image {image_ids[image]!r}: {name} classes {ids[image].tolist()} "
                f"are not all in 0..{self.classes[name] - 1}, which the model has: "
                "the features are of another detector; leave "
                f"{name} out of --visualLosses, or use the detector's own features"
            )

    def _answers(
        self, data: Sentences, indices: Sequence[int], matched: Tensor, draws: Draws
    ) -> dict[str, Tensor]:
        """An answer to learn (B,), all answers and their scores (B, K), what is a question (B,)."""
        found = [data.answers(i) for i in indices]
        numbers = draws.uniform(ANSWER, 1)[:, 0].tolist()
        drawn = torch.tensor(
            [
                draw_answer(labels, scores, number)
                for (labels, scores), number in zip(found, numbers, strict=True)
            ]
        )
        most = max(1, *(len(labels) for labels, _ in found))
        known = torch.full((len(indices), most), IGNORED)
        scores = torch.zeros(len(indices), most)
        for row, (labels, soft) in enumerate(found):
            known[row, : len(labels)] = torch.from_numpy(labels.copy())
            scores[row, : len(labels)] = torch.from_numpy(soft.copy())
        asked = torch.from_numpy(data.questions[list(indices)]) & (matched == 1)
        return {
            "answer_label": torch.where(asked, drawn, torch.full_like(drawn, IGNORED)),
            "answers": known,
            "answer_scores": scores,
            "asked": asked,
        }

    def step(self, model: nn.Module, batch: TaskBatch) -> StepOutput:
        """All losses; the score is the soft score of the likeliest answers to the questions."""
        losses, scores = self._run(model, batch)
        if scores is None:
            return StepOutput(losses, 0.0, 0)
        return StepOutput(losses, scores.sum(), batch.labels["asked"].sum())

    def _run(self, model: nn.Module, batch: TaskBatch) -> tuple[dict[str, Tensor], Tensor | None]:
        """Losses, and (B,) the soft scores of the likeliest answers (0 where nothing is asked)."""
        outputs, labels = model(**batch.inputs), batch.labels
        if "word_labels" in labels:
            labels = labels | {"word_labels": labels["word_labels"][batch.inputs["word_places"]]}
        losses = pretraining_losses(outputs, labels)
        if "answers" not in outputs:
            return losses, None
        guesses = outputs["answers"].detach().argmax(1, keepdim=True)
        right = (labels["answers"] == guesses) * labels["answer_scores"]
        return losses, right.sum(1) * labels["asked"]

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Validation:
        """Mean losses over the held-out part; the score is minus their sum.

        A loss is the mean over all held-out words, regions or sentences that it is about.
        """
        model.eval()
        data = self.heldout
        names = [*self.objectives.losses, *(f"asked {kind}" for kind in data.categories)]

        def measure(batch: TaskBatch, means: Means) -> dict[str, Tensor]:
            losses, scores = self._run(model, batch)
            if scores is not None:
                kinds = data.kinds[batch.samples]
                asked = batch.labels["asked"].tolist()
                for row, (score, is_asked) in enumerate(zip(scores.tolist(), asked, strict=True)):
                    if is_asked:
                        means.add(f"asked {data.categories[kinds[row]]}", score, 1)
            return losses

        return self._finish(heldout_means(self, data, data, names, measure))

    def _finish(self, means: Means) -> Validation:
        """The means, over all processes."""
        losses = {name: means.mean(name) or 0.0 for name in self.objectives.losses}
        details: dict[str, object] = {"heldout_losses": losses}
        if self.objectives.qa:
            kinds = [f"asked {kind}" for kind in self.heldout.categories]
            overall = means.mean(*kinds)
            shares = means.shares(sorted(kinds))
            details["heldout_qa_accuracy"] = (
                {} if overall is None else {"overall": 100 * overall}
            ) | {kind.removeprefix("asked "): share for kind, share in shares.items()}
        return Validation(-sum(losses.values()), details)
