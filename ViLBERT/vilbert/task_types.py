"""What a task reads of the model, by its `type`: an option, a region, an answer.

Shape legend: B samples, O options of a sample, R regions, A answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from common.errors import DataError
from common.tasks.vqa import check_logits, vqa_loss
from vilbert.losses import option_loss, region_choice_loss
from vilbert.pair_inputs import ShownRegions
from vilbert.samples import Box, Sample, TaskData

MEANT = 0.5  # least overlap of a region with the one that is meant
REGION_LABELS = {"overlap": 0, "present": 0}  # (B, R), with what stands in the padding
Labels = Mapping[str, Tensor]
Row = dict[str, Any]


class TaskType(Protocol):
    """How samples become labels, and outputs of a head become losses, scores and rows of a file.

    Attributes:
        head: of the model.
        loss: its name in the task file.
    """

    head: str
    loss: str

    def told(self, sample: Sample) -> bool:
        """Whether what is right about a sample is public."""

    def labels(
        self, samples: Sequence[Sample], shown: ShownRegions, data: TaskData
    ) -> dict[str, Tensor]:
        """What the loss needs, (B, …); nothing where it is not public."""

    def losses(self, logits: Tensor, labels: Labels) -> Tensor:
        """Mean over the samples."""

    def scores(self, logits: Tensor, labels: Labels) -> Tensor:
        """(B,) 1 where the likeliest choice is right."""

    def chance(self, labels: Labels) -> Tensor | None:
        """(B,) score of a random choice; None where there is no small number of choices."""

    def rows(
        self, samples: Sequence[Sample], logits: Tensor, labels: Labels, data: TaskData
    ) -> list[Row]:
        """What is written of each sample."""


class OptionChoice:
    """VL-logit: every pair gets a score; among the pairs of a sample one is right."""

    head, loss = "vil_logit", "CrossEntropyLoss"

    def told(self, sample: Sample) -> bool:
        return sample.right is not None

    def labels(
        self, samples: Sequence[Sample], shown: ShownRegions, data: TaskData
    ) -> dict[str, Tensor]:
        rights = [sample.right for sample in samples]
        options = torch.full((len(samples),), data.options)
        if not all(map(self.told, samples)):
            return {"options": options}
        return {"right": torch.tensor(rights), "options": options}

    def losses(self, logits: Tensor, labels: Labels) -> Tensor:
        return option_loss(logits, labels["right"], _options(labels))

    def scores(self, logits: Tensor, labels: Labels) -> Tensor:
        chosen = logits.detach().view(-1, _options(labels)).argmax(1)
        return (chosen == labels["right"]).float()

    def chance(self, labels: Labels) -> Tensor | None:
        return 1.0 / labels["options"].float()

    def rows(
        self, samples: Sequence[Sample], logits: Tensor, labels: Labels, data: TaskData
    ) -> list[Row]:
        chances = logits.float().view(-1, _options(labels)).softmax(1)
        check_logits(chances, [f"sample {sample.sample_id}" for sample in samples])
        return [
            {"question_id": sample.sample_id, "answer": row}
            for sample, row in zip(samples, chances.tolist(), strict=True)
        ]


class RegionChoice:
    """V-logit: every region gets a score; those that cover the one that is meant are right."""

    head, loss = "vision_logit", "BCEWithLogitLoss"

    def told(self, sample: Sample) -> bool:
        return sample.box is not None

    def labels(
        self, samples: Sequence[Sample], shown: ShownRegions, data: TaskData
    ) -> dict[str, Tensor]:
        boxes = [sample.box for sample in samples]
        present = {"present": shown.mask}
        if any(box is None for box in boxes):
            return present
        return {"overlap": overlaps(shown, [box for box in boxes if box is not None]), **present}

    def losses(self, logits: Tensor, labels: Labels) -> Tensor:
        overlap = labels["overlap"]
        return region_choice_loss(logits, torch.where(overlap < MEANT, 0.0, overlap)[..., None])

    def scores(self, logits: Tensor, labels: Labels) -> Tensor:
        chosen = logits.detach()[..., 0].argmax(1, keepdim=True)
        return (labels["overlap"].gather(1, chosen)[:, 0] > MEANT).float()

    def chance(self, labels: Labels) -> Tensor | None:
        if "overlap" not in labels:
            return None
        return (labels["overlap"] > MEANT).float().sum(1) / labels["present"].sum(1)

    def rows(
        self, samples: Sequence[Sample], logits: Tensor, labels: Labels, data: TaskData
    ) -> list[Row]:
        check_logits(logits[..., 0], [f"sample {sample.sample_id}" for sample in samples])
        chosen = logits[..., 0].argmax(1)
        rows: list[Row] = [
            {"id": sample.sample_id, "target": place}
            for sample, place in zip(samples, chosen.tolist(), strict=True)
        ]
        if "overlap" in labels:
            found = labels["overlap"].gather(1, chosen[:, None])[:, 0].tolist()
            for row, overlap in zip(rows, found, strict=True):
                row["IOU"] = overlap
        return rows


class AnswerChoice:
    """VL-classifier: answers with soft scores."""

    head, loss = "vil_prediction", "BCEWithLogitLoss"

    def told(self, sample: Sample) -> bool:
        return sample.answers is not None

    def labels(
        self, samples: Sequence[Sample], shown: ShownRegions, data: TaskData
    ) -> dict[str, Tensor]:
        if any(sample.answers is None for sample in samples):
            return {}
        target = torch.zeros(len(samples), len(data.answers))
        for row, sample in zip(target, samples, strict=True):
            for answer, score in (sample.answers or {}).items():
                if answer not in data.answers:
                    raise DataError(
                        f"sample {sample.sample_id}: answer {answer!r} is none of the "
                        f"{len(data.answers)} answers of the task"
                    )
                row[data.answers.index(answer)] = score
        return {"target": target}

    def losses(self, logits: Tensor, labels: Labels) -> Tensor:
        return vqa_loss(logits, labels["target"])

    def scores(self, logits: Tensor, labels: Labels) -> Tensor:
        return labels["target"].gather(1, logits.detach().argmax(1, keepdim=True))[:, 0]

    def chance(self, labels: Labels) -> Tensor | None:
        return None

    def rows(
        self, samples: Sequence[Sample], logits: Tensor, labels: Labels, data: TaskData
    ) -> list[Row]:
        check_logits(logits, [f"sample {sample.sample_id}" for sample in samples])
        return [
            {"question_id": sample.sample_id, "answer": data.answers[place]}
            for sample, place in zip(samples, logits.argmax(1).tolist(), strict=True)
        ]


TYPES: dict[str, TaskType] = {
    "VL-classifier": AnswerChoice(),
    "VL-logit": OptionChoice(),
    "V-logit": RegionChoice(),
}


def _options(labels: Labels) -> int:
    return int(labels["options"][0])


def overlaps(shown: ShownRegions, boxes: Sequence[Box]) -> Tensor:
    """Intersection over union of the shown regions with a box for each sample, (B, R).

    Boxes cover their last row and column of pixels, as in the original.
    """
    meant = torch.tensor(boxes)[:, None]
    corner = torch.minimum(shown.boxes[..., 2:], meant[..., 2:])
    first = torch.maximum(shown.boxes[..., :2], meant[..., :2])
    common = (corner - first + 1).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2] + 1).prod(-1) for box in (shown.boxes, meant)]
    return torch.where(shown.mask, common / (areas[0] + areas[1] - common), 0.0)
