"""VL-BERT's pretraining for the training loop: batches, losses, accuracies.

Shape legend: B captions, A texts without an image, T tokens, K boxes, V words, W masked places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.modules.losses import IGNORED
from common.tasks.masking import Draws
from common.tasks.pretraining import heldout_means
from common.training.means import Means
from common.training.runtime import Runtime
from common.training.task import StepOutput, TaskBatch, Validation
from vlbert.pretraining_data import Part, PretrainingData
from vlbert.pretraining_losses import labelled_regions, loss_weights, pretraining_losses
from vlbert.pretraining_masking import TEXT_WORDS, mask_words
from vlbert.sizes import PretrainingConfig

# Loss → the accuracy that belongs to it, as the original calls them; the first that there is
# selects the best epoch.
ACCURACIES = {
    "mlm_loss_wvc": "MLMAccWVC",
    "mlm_loss_aux": "MLMAccAUX",
    "mvrc_loss": "MVRCAccuracy",
    "relationship_loss": "RelAcc",
}
Right = dict[str, Tensor]


class PretrainingTask:
    """Captions with images, and texts; everything random is keyed by (seed, epoch, caption)."""

    def __init__(
        self,
        data: PretrainingData,
        config: PretrainingConfig,
        runtime: Runtime,
        seed: int,
        eval_batch_size: int,
        workers: int = 0,
        progress: bool = True,
    ) -> None:
        """Put data and network together.

        Args:
            config: of the network: which losses there are.
            seed: of everything that is drawn.
            eval_batch_size: captions per batch of validation.
            workers: processes that read batches for validation.
        """
        self.data, self.config, self.runtime, self.seed = data, config, runtime, seed
        self.tokenizer = data.tokenizer
        self.eval_batch_size, self.workers, self.progress = eval_batch_size, workers, progress
        wanted = {
            "mlm_loss_wvc": config.words,
            "mlm_loss_aux": config.words and config.multitask,
            "mvrc_loss": config.regions,
            "relationship_loss": config.relationship,
        }
        self.losses = [name for name, there in wanted.items() if there]

    def __len__(self) -> int:
        return len(self.data.train.captions)

    def read(self, indices: Sequence[int], epoch: int) -> TaskBatch:
        """The training captions at some places, masked for this epoch, with their texts."""
        return self.draw(self.data.train, indices, epoch)

    def draw(self, part: Part, indices: Sequence[int], epoch: int) -> TaskBatch:
        """Mask the captions at some places of a part of the data, and the texts beside them."""
        inputs, labels = part.captions.read(indices, Draws(self.seed, epoch, indices))
        if part.texts is not None:
            numbers, texts = part.texts.beside(indices, self.seed, epoch)
            inputs["aux_text"], words = mask_words(
                texts, self.tokenizer, Draws(self.seed, epoch, numbers), TEXT_WORDS, self.data.rates
            )
            if self.config.words:
                labels["aux_words"] = words
        if self.config.words and not self.config.words_by_sample:
            # Only the masked places get logits: the vocabulary is large.
            inputs["word_places"] = _all_words(labels) != IGNORED
        return TaskBatch(list(indices), inputs, labels, weights=loss_weights(self.config, labels))

    def step(self, model: nn.Module, batch: TaskBatch) -> StepOutput:
        """All losses; the score is the share of masked words (else regions …) that are right."""
        losses, right = self._run(model, batch)
        shown = right[ACCURACIES[self.losses[0]]]
        return StepOutput(losses, shown.sum(), len(shown))

    def _run(self, model: nn.Module, batch: TaskBatch) -> tuple[dict[str, Tensor], Right]:
        """Losses, and for each accuracy which of the things that it is about were right, bool."""
        outputs, labels = dict(model(**batch.inputs)), dict(batch.labels)
        if self.data.word_kinds and "words" in labels:
            types = batch.inputs["text_types"]
            assert types is not None
            labels["stated"] = _stated(types)
        if "word_places" in batch.inputs:
            outputs, labels = _by_kind(outputs, labels)
        losses = pretraining_losses(self.config, outputs, labels)
        with torch.no_grad():
            return losses, self._right(outputs, labels)

    def _right(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Right:
        right: Right = {}
        for key, name in (("words", "MLMAccWVC"), ("aux_words", "MLMAccAUX")):
            if key in outputs and key in labels:
                wanted = labels[key][:, : outputs[key].shape[1]]
                chosen = wanted != IGNORED
                guesses = outputs[key][:, : wanted.shape[1]].argmax(-1)
                right[name] = (guesses == wanted)[chosen]
                for kind, ids in self.data.word_kinds.items() if key == "words" else ():
                    of_kind = (
                        chosen
                        & torch.isin(wanted, ids.to(wanted.device))
                        & labels["stated"][:, : wanted.shape[1]]
                    )
                    right[f"MLMAcc {kind}"] = (guesses == wanted)[of_kind]
        if "regions" in outputs:
            wanted = labels["regions"][:, : outputs["regions"].shape[1]]
            guesses = outputs["regions"].argmax(-1)[:, : wanted.shape[1]]
            right["MVRCAccuracy"] = (guesses == wanted.argmax(-1))[labelled_regions(wanted)]
        if "relationship" in outputs:
            wanted = labels["relationship"]
            right["RelAcc"] = (outputs["relationship"].argmax(-1) == wanted)[wanted != IGNORED]
        return right

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Validation:
        """Mean losses and accuracies on the held-out part; the first accuracy is the score.

        A mean is over all held-out words, regions or captions that it is about.
        """
        model.eval()
        part = self.data.heldout
        names = [ACCURACIES[loss] for loss in self.losses]
        if self.config.words:
            names += [f"MLMAcc {kind}" for kind in self.data.word_kinds]

        def measure(batch: TaskBatch, means: Means) -> dict[str, Tensor]:
            losses, right = self._run(model, batch)
            for name, answers in right.items():
                means.add(name, float(answers.sum()), len(answers))
            return losses

        means = heldout_means(self, part, part.captions, [*self.losses, *names], measure)
        accuracies = means.shares(names)
        losses = {name: means.mean(name) or 0.0 for name in self.losses}
        return Validation(
            accuracies.get(names[0], 0.0),
            {"heldout_losses": losses, "heldout_accuracies": accuracies},
        )


def _all_words(labels: Mapping[str, Tensor]) -> Tensor:
    """Labels of captions and texts as one table, (B + A, the larger T)."""
    tables = [labels[key] for key in ("words", "aux_words") if key in labels]
    width = max(table.shape[1] for table in tables)
    return torch.cat([F.pad(table, (0, width - table.shape[1]), value=IGNORED) for table in tables])


def _by_kind(
    outputs: dict[str, Tensor], labels: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Logits (W, V) of the masked places as (1, ·, V) of captions and of texts, with labels."""
    chosen = {key: labels[key] != IGNORED for key in ("words", "aux_words") if key in labels}
    found: dict[str, Tensor] = {key: labels[key][places][None] for key, places in chosen.items()}
    parts = outputs.pop("words").split([wanted.shape[1] for wanted in found.values()])
    logits = {key: part[None] for key, part in zip(found, parts, strict=True)}
    if "stated" in labels:
        found["stated"] = labels["stated"][chosen["words"]][None]
    return outputs | logits, labels | found


def _stated(types: Tensor) -> Tensor:
    """Which words say something of the image: captions and replies, not questions; (B, T) bool."""
    reply = types > 0
    return reply | ~reply.any(1, keepdim=True)
