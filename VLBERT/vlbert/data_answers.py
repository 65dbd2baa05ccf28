"""The answer file of VL-BERT: one answer per line."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from common.data.annotations import AnswerVocabulary
from common.data.answer_scores import normalise_answer, strip_punctuation
from common.errors import DataError
from common.reading import read_text

UNKNOWN = "<unk>"


class AnswerFile(AnswerVocabulary):
    """The answers of a file; a label is the place of an answer among its lines.

    As in the original, lines are put in small letters and through the punctuation rule of the
    metric. `<unk>` stands for every other answer: it is never right, and never given.
    """

    def __init__(self, path: Path | str, size: int | None = None, verbatim: bool = False) -> None:
        """Read a file.

        Args:
            path: The file.
            size: Number of its answers, if it is known.
            verbatim: Annotated answers are compared as they were typed, as in the original;
                otherwise in the spelling of the metric.

        Raises:
            DataError: No such file, or it has another number of answers.
        """
        self.path = Path(path)
        kind = "the file with one answer per line (answers_vqa.txt)"
        lines = read_text(self.path, hint=kind, kind=kind).splitlines()
        answers = [line.strip().lower() for line in lines if line.strip()]
        self.answers = [a if a == UNKNOWN else strip_punctuation(a) for a in answers]
        if not self.answers or (size is not None and len(self.answers) != size):
            raise DataError(
                f"{self.path}: {len(self.answers)} answers, the config says {size} "
                "(DATASET.ANSWER_VOCAB_SIZE): take the file that belongs to the model, "
                "or change that key"
            )
        self.labels: dict[str, int] = {}
        for label, answer in enumerate(self.answers):
            if answer != UNKNOWN:
                self.labels.setdefault(answer if verbatim else normalise_answer(answer), label)

    def decode(self, logits: Tensor) -> list[str]:
        """The best answers of logits (B, A), of those that are one."""
        if UNKNOWN in self.answers and logits.shape[-1] == len(self):
            logits = logits.clone()
            logits[:, self.answers.index(UNKNOWN)] = float("-inf")
        return super().decode(logits)
