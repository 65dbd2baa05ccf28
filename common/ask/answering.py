"""One image and one question through a finetuned model: answers, and what was decided.

Shape legend: B batch (here 1), R regions, A answers, D decisions.
"""

from __future__ import annotations

import string
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from common.adapt.attention_capture import capture
from common.adapt.encoder import Adaptive
from common.adapt.policy import RandomPolicy
from common.ask.attention import Choice, PairAttention, attention_json, choose_block
from common.data.tokenizer import MAX_TOKENS, Tokenizer
from common.data.vqa_dataset import VQABatch
from common.errors import ConfigError
from common.features.store import Regions
from common.runs.attention_blocks import blocks
from common.runs.backbones import OpenedRun
from common.tasks.evaluation import EVALUATION
from common.tasks.vqa import check_logits

UNKNOWN = "[UNK]"


@dataclass(frozen=True)
class Answer:
    """One answer; `probability` is the sigmoid of its own logit (see `ask`)."""

    text: str
    probability: float
    logit: float


@dataclass
class PairDecisions:
    """What was decided for one pair, D entries each.

    Attributes:
        layers, components, names: of each decision.
        live: whether it can matter.
        decisions: 0 or 1; 1 is what `words[1]` says.
        probabilities: of decision 1, by the policy; None where no policy was asked.
        words: what decisions 0 and 1 mean: `("frozen", "finetuned")`.
        how: argmax, sample or global.
        average: share of the evaluated questions for which each decision is 1, from the run's
            result; None where the run has none.
    """

    layers: list[str]
    components: list[str]
    names: list[str]
    live: list[bool]
    decisions: list[int]
    probabilities: list[float] | None
    words: tuple[str, str]
    how: str
    average: list[float] | None = None


@dataclass
class Answered:
    """A question with its best answers.

    Attributes:
        question: as it was asked.
        answers: the likeliest first.
        decisions: None where the strategy decides nothing.
        notes: what the user should know about the question.
        attention: of the layer and head that was asked for, if one was.
    """

    question: str
    answers: list[Answer]
    decisions: PairDecisions | None
    notes: list[str] = field(default_factory=list)
    attention: PairAttention | None = None


@torch.no_grad()
def ask(
    run: OpenedRun,
    regions: Regions,
    question: str,
    top: int = 5,
    seed: int = 0,
    attention: Choice | None = None,
    picture: Image.Image | None = None,
) -> Answered:
    """Ask a finetuned model a question about an image.

    The answer head is trained with binary cross-entropy for every answer by itself, so a
    probability is the sigmoid of one logit; those of all answers need not add up to 1.

    Args:
        run: the model.
        regions: of the image, by the detector that the model was trained with.
        question: not empty.
        top: how many answers.
        seed: of decisions that are drawn; the same pair always draws the same ones.
        attention: what to show of it.
        picture: the image in RGB, for a model that reads pixels.

    Raises:
        ConfigError: an empty question, no answers wanted, or decisions that cannot be made.
        DataError: boxes outside their image, no picture for a model that reads one, or a model
            that computes no finite numbers.
    """
    if not question.strip():
        raise ConfigError(f"empty question {question!r}: give some words")
    if top < 1:
        raise ConfigError(f"top {top}: at least 1 answer")
    inputs = run.make_inputs(make_batch(regions, question, picture))
    part = run.adaptive
    if part is not None:
        pair = f"{regions.image_id}\n{question}".encode()
        part.tell(seed, EVALUATION, [zlib.crc32(pair)])
    shown = None
    if attention is None:
        logits = run.model(**inputs)[0].float()
    else:
        with capture(run.model) as found:
            logits = run.model(**inputs)[0].float()
        shown = choose_block(attention, blocks(run, inputs, found))
    check_logits(logits[None], [f"image {regions.image_id!r}, question {question!r}"])
    order = logits.argsort(descending=True, stable=True)[:top].tolist()
    answers = [Answer(run.answers[i], float(logits[i].sigmoid()), float(logits[i])) for i in order]
    decisions = None if part is None else read_decisions(part, run.result)
    room = getattr(run.make_inputs, "longest", MAX_TOKENS - 2)
    notes = question_notes(run.tokenizer, question, room)
    return Answered(question, answers, decisions, notes, shown)


def make_batch(regions: Regions, question: str, picture: Image.Image | None = None) -> VQABatch:
    """One image and one question as a batch of a VQA data set."""
    extra: dict[str, Tensor | None] = {
        name: None if value is None else value[None]
        for name in (
            "object_ids",
            "object_conf",
            "attribute_ids",
            "attribute_conf",
            "image_features",
        )
        for value in [getattr(regions, name)]
    }
    return VQABatch(
        [0],
        [regions.image_id],
        [question],
        [None],
        [None],
        regions.features[None],
        regions.normalised_boxes()[None],
        regions.boxes[None],
        torch.tensor([[regions.width, regions.height]], dtype=torch.float32),
        torch.ones(1, len(regions.boxes), dtype=torch.bool),
        pictures=None if picture is None else [picture],
        **extra,
    )


def read_decisions(part: Adaptive, result: Mapping[str, Any] | None = None) -> PairDecisions:
    """What the last forward pass, of one pair, decided.

    Args:
        part: that decided.
        result: of its run, which knows the average.
    """
    last = part.last
    assert last is not None
    logits = last.logits
    known = (result or {}).get("decisions") or {}
    same = known.get("names") == part.decision_names
    random = isinstance(part.policy, RandomPolicy) and logits is not None
    return PairDecisions(
        part.decision_layers,
        part.decision_components,
        part.decision_names,
        part.live.tolist(),
        last.decisions[0].int().tolist(),
        None if logits is None else logits[0].float().softmax(-1)[:, 1].tolist(),
        (part.strategy.other_word, part.strategy.decision_word),
        "sample" if random else part.options.policy_eval,
        known["share"] if same else None,
    )


def question_notes(
    tokenizer: Tokenizer, question: str, room: int | None = MAX_TOKENS - 2
) -> list[str]:
    """Words that the vocabulary does not have, and words that were cut off.

    Args:
        room: word pieces that the model reads, without special tokens; None: all.
    """
    words = [word.strip(string.punctuation) or word for word in question.split()]
    pieces = {word: tokenizer.pieces(word) for word in words}
    notes = []
    if unknown := [word for word in pieces if UNKNOWN in pieces[word]]:
        notes.append(f"not in the vocabulary, read as {UNKNOWN}: {', '.join(unknown)}")
    parts = [word for word in pieces if any(piece.startswith("##") for piece in pieces[word])]
    if parts and only_spells(tokenizer):
        spelled = ", ".join(f"{word} ({' '.join(pieces[word])})" for word in parts)
        notes.append(
            "not among the words of the vocabulary, so spelled letter by letter and "
            f"hardly understood: {spelled}"
        )
    read = tokenizer.pieces(question)
    if room is not None and len(read) > room:
        last = " ".join(read[:room][-4:]).replace(" ##", "")
        notes.append(f"{len(read)} word pieces, the model reads {room}: cut off after {last!r}")
    return notes


def only_spells(tokenizer: Tokenizer) -> bool:
    """Whether words can only be continued letter by letter, see `small_vocabulary`."""
    continued = [piece for piece in tokenizer.text().split() if piece.startswith("##")]
    return all(len(piece) == len("##") + 1 for piece in continued)


def as_json(answered: Answered) -> dict[str, Any]:
    """For machines; decisions by name."""
    found = answered.decisions
    decisions = None
    if found is not None:
        unknown: list[float | None] = [None] * len(found.names)
        probabilities, average = found.probabilities or unknown, found.average or unknown
        decisions = {
            "policy_eval": found.how,
            "one_means": found.words[1],
            "zero_means": found.words[0],
            "sites": [
                {
                    "name": name,
                    "layer": layer,
                    "component": component,
                    "live": live,
                    "decision": decision,
                    "probability": probability,
                    "average": share,
                }
                for name, layer, component, live, decision, probability, share in zip(
                    found.names,
                    found.layers,
                    found.components,
                    found.live,
                    found.decisions,
                    probabilities,
                    average,
                    strict=True,
                )
            ],
        }
    return {
        "question": answered.question,
        "answers": [vars(answer) for answer in answered.answers],
        "decisions": decisions,
        "notes": answered.notes,
        "attention": None if answered.attention is None else attention_json(answered.attention),
    }
