"""LXMERT's pretraining objectives: every choice trains, and losses add up over parts of a batch."""

from __future__ import annotations

from itertools import chain, combinations, product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import ConfigError
from common.training.runtime import make_runtime
from common.training.task import TaskBatch
from lxrt.modeling import PretrainingModel
from lxrt.pretraining_data import PretrainingData
from lxrt.pretraining_losses import (
    pretraining_losses,
    region_class_loss,
    region_feature_loss,
    total_loss,
)
from lxrt.pretraining_objectives import VISUAL_LOSSES, Objectives, train_outputs
from lxrt.pretraining_sentences import Sentences, SentencesBuilder
from lxrt.pretraining_task import PretrainingTask
from tests.lxmert.pretraining_files import task_maker
from tests.lxmert.snapshots import config

ANSWERS = ["yes", "no", "two", "red"]
SUBSETS = list(chain.from_iterable(combinations(VISUAL_LOSSES, n) for n in (1, 2, 3)))
CHOICES = [
    Objectives(matched=m, mask_lm=w, qa=q, obj_predict=bool(v), visual_losses=v or VISUAL_LOSSES)
    for m, w, q, v in product((True, False), (True, False), (True, False), [(), *SUBSETS])
    if m or w or q or v
]


def sentences() -> Sentences:
    """Captions and questions, some of them without a known answer, about 9 images."""
    builder = SentencesBuilder()
    for place in range(40):
        image, number = f"image {place % 9}", place % 4
        if number < 2:
            builder.add(image, "mscoco", "a red dog and a blue man", None)
        else:
            builder.add(image, "vqa", "is there a dog", {number: 1.0, 0: 0.3} if place % 3 else {})
    return builder.build()


@pytest.fixture(scope="module")
def make_task(tmp_path_factory: pytest.TempPathFactory):
    """Builds a task on tiny data; images have 3 or 2 regions."""
    return task_maker(tmp_path_factory.mktemp("objectives"), sentences(), ANSWERS)


def model_of(task: PretrainingTask, layers: tuple[int, int, int] = (2, 2, 1)) -> PretrainingModel:
    """A tiny model without dropout for the objectives of a task, in float64."""
    torch.manual_seed(5)
    goals = task.objectives
    sizes = config(len(ANSWERS), layers, vocab_size=len(task.tokenizer), max_position_embeddings=20)
    model = PretrainingModel(sizes.without_dropout(), goals.regions, goals.qa).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    train_outputs(model, goals.outputs)
    return model


def in_double(batch: TaskBatch) -> TaskBatch:
    def convert(table: dict) -> dict:
        return {
            k: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
            for k, x in table.items()
        }

    return TaskBatch(
        batch.samples, convert(batch.inputs), convert(batch.labels), weights=batch.weights
    )


def backward(task: PretrainingTask, model: PretrainingModel, rows: list[int]) -> dict[str, Tensor]:
    losses = task.step(model, in_double(task.read(rows, 0))).losses
    total_loss(losses).backward()
    return losses


@pytest.mark.parametrize("layers", [(2, 2, 1), (1, 0, 1)])
def test_every_choice_of_objectives_trains_exactly_what_it_reaches(make_task, layers):
    """63 choices. A trainable parameter without a gradient would break training on several
    processes; a frozen one that could have one would not be trained."""
    assert len(CHOICES) == 63
    for goals in CHOICES:
        task = make_task(goals)
        model = model_of(task, layers)
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        losses = backward(task, model, list(range(6)))
        assert tuple(losses) == goals.losses, goals
        assert all(bool(torch.isfinite(loss)) for loss in losses.values()), goals
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == (name in frozen), (goals, name)
        for parameter in model.parameters():
            parameter.grad = None
            parameter.requires_grad_(True)
        backward(task, model, list(range(6)))
        unreached = {name for name, p in model.named_parameters() if p.grad is None}
        assert frozen == unreached, goals


def test_heads_of_objectives_that_are_off_are_not_saved_as_if_they_were_trained(make_task):
    goals = Objectives(qa=False, visual_losses=("attr",))
    names = model_of(make_task(goals)).state_dict()
    assert not any(name.startswith("answer_head") for name in names)
    assert [n for n in names if "decoder_dict" in n] == [
        f"obj_predict_head.decoder_dict.attr.{part}" for part in ("weight", "bias")
    ]
    goals = Objectives(obj_predict=False)
    assert not any("obj_predict_head" in name for name in model_of(make_task(goals)).state_dict())


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_batch_without_masked_words_or_labelled_answers_gives_zero_losses_and_gradients(
    make_task, rate
):
    """Upstream: 0 / 0 = NaN for the whole step."""
    task = make_task(Objectives(word_mask_rate=rate, obj_mask_rate=rate, matched=False))
    captions = [row for row in range(40) if not task.train.questions[row]][:4]
    batch = in_double(task.read(captions, 0))
    assert batch.weights["QA"] == 0 and (batch.weights["Mask_LM"] > 0) == bool(rate)
    model = model_of(task)
    losses = task.step(model, batch).losses
    total_loss(losses).backward()
    assert losses["QA"] == 0 and (losses["Mask_LM"] > 0) == bool(rate)
    assert (losses["Feat"] > 0) == bool(rate)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert bool(torch.isfinite(parameter.grad).all()), name
    assert not model.answer_head.logit_fc[0].weight.grad.any()


@pytest.mark.parametrize("parts", [[3, 13], [1, 7, 8], [5, 5, 6]])
def test_the_losses_of_a_batch_are_the_weighted_means_of_those_of_its_parts(make_task, parts):
    """However a batch is divided over processes or micro-batches; its parts pad differently."""
    task = make_task(Objectives(word_mask_rate=0.5))
    model, rows = model_of(task).eval(), list(range(10, 26))
    whole = in_double(task.read(rows, 2))
    pieces = [
        in_double(task.read(rows[sum(parts[:n]) : sum(parts[: n + 1])], 2))
        for n in range(len(parts))
    ]
    if parts[0] == 1:
        assert "region_present" in whole.labels and "region_present" not in pieces[0].labels
    with torch.no_grad():
        expected = task.step(model, whole).losses
        found = [task.step(model, piece).losses for piece in pieces]
    for name, loss in expected.items():
        weights = [piece.weights.get(name, len(piece.samples)) for piece in pieces]
        assert sum(weights) == whole.weights.get(name, len(rows)) > 0
        added = sum(w * losses[name] for w, losses in zip(weights, found, strict=True))
        torch.testing.assert_close(added / sum(weights), loss, rtol=1e-11, atol=1e-12)


def test_validation_gives_the_means_over_all_words_regions_and_sentences(make_task):
    """Not means of the batches' means: the size of the batches does not matter, nor when."""
    goals = Objectives(word_mask_rate=0.4)
    found = []
    for size in (40, 7, 1):
        task = make_task(goals, eval_batch_size=size)
        model = model_of(task)
        task._run = lambda model, batch, run=task._run: run(model, in_double(batch))
        found.append(task.validate(model))
        assert not model.training
    for other in found[1:]:
        assert other.score == pytest.approx(found[0].score, rel=1e-10)
        for name, loss in found[0].details["heldout_losses"].items():
            assert other.details["heldout_losses"][name] == pytest.approx(loss, rel=1e-10)
        assert other.details["heldout_qa_accuracy"] == found[0].details["heldout_qa_accuracy"]
    assert tuple(found[0].details["heldout_losses"]) == goals.losses
    assert found[0].score == pytest.approx(-sum(found[0].details["heldout_losses"].values()))


def test_answer_accuracy_is_the_soft_score_per_data_set_of_what_is_asked(make_task):
    """Against a plain computation; sentences of other images are not asked."""
    task = make_task(Objectives(), eval_batch_size=40)
    model = model_of(task).eval()
    accuracy = task.validate(model.float()).details["heldout_qa_accuracy"]
    batch = task.draw(task.heldout, list(range(40)), -1)
    with torch.no_grad():
        guesses = model(**batch.inputs)["answers"].argmax(1).tolist()
    scores = []
    for row, guess in enumerate(guesses):
        if task.heldout.questions[row] and batch.labels["matched_label"][row]:
            labels, soft = task.heldout.answers(row)
            scores.append(dict(zip(labels.tolist(), soft.tolist(), strict=True)).get(guess, 0.0))
    assert 3 < len(scores) < 20
    expected = 100 * sum(scores) / len(scores)
    assert accuracy == pytest.approx({"overall": expected, "vqa": expected}, rel=1e-6)
    step = task.step(model, batch)
    assert step.count == len(scores) and step.score_sum == pytest.approx(sum(scores), rel=1e-6)


def test_words_get_logits_only_where_they_are_masked_and_the_loss_is_the_same(make_task):
    task = make_task(Objectives(word_mask_rate=0.5))
    model, batch = model_of(task).eval(), in_double(task.read(list(range(8)), 0))
    with torch.no_grad():
        loss = task.step(model, batch).losses["Mask_LM"]
        there = model(**batch.inputs)["words"]
        everywhere = model(**(batch.inputs | {"word_places": None}))
        full = pretraining_losses(everywhere, batch.labels)["Mask_LM"]
    assert there.shape[0] == batch.weights["Mask_LM"] < everywhere["words"][..., 0].numel()
    torch.testing.assert_close(loss, full, rtol=1e-12, atol=0)


def test_region_losses_are_means_over_the_regions_that_are_there():
    """Closed forms; without padding upstream's mean over all B · R."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[0, 3, 1], [2, 2, 0]])
    confidence = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    present = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    each = (
        torch.stack(
            [
                -F.log_softmax(logits[i, j], 0)[labels[i, j]] * confidence[i, j]
                for i in range(2)
                for j in range(3)
            ]
        )
        / 0.15
    )
    torch.testing.assert_close(region_class_loss(logits, labels, confidence), each.mean())
    torch.testing.assert_close(
        region_class_loss(logits, labels, confidence, present), each[:4].mean()
    )
    target = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    masked = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    each = F.smooth_l1_loss(logits, target, reduction="none").mean(-1).flatten() / 0.15
    torch.testing.assert_close(
        region_feature_loss(logits, target, masked), each[[0, 3, 4, 5]].sum() / 6
    )
    torch.testing.assert_close(
        region_feature_loss(logits, target, masked, present), each[[0, 3]].sum() / 4
    )


def test_losses_are_in_float32_whatever_the_precision_of_the_outputs():
    low = {
        "matched": torch.tensor([[3.0, -2.0]], dtype=torch.bfloat16, requires_grad=True),
        "feat": torch.ones(1, 1, 5, dtype=torch.bfloat16),
    }
    labels = {
        "matched_label": torch.tensor([0]),
        "feat_target": torch.full((1, 1, 5), 1.0 + 1e-4),
        "feat_mask": torch.ones(1, 1),
    }
    losses = pretraining_losses(low, labels)
    assert losses["Matched"].dtype == losses["Feat"].dtype == torch.float32
    expected = F.softplus(torch.tensor(-5.0)).item()
    assert losses["Matched"].item() == pytest.approx(expected, rel=1e-5)
    assert losses["Feat"].item() == pytest.approx(0.5e-8 / 0.15, rel=1e-2)


@pytest.mark.parametrize("losses", [(), ("obj", "object"), ("obj", "obj"), ("",)])
def test_visual_losses_that_do_not_exist_are_refused(losses):
    with pytest.raises(ConfigError, match="--visualLosses .*: give some of obj, attr, feat"):
        Objectives(visual_losses=losses)


def test_objectives_for_which_the_data_have_nothing_are_refused(make_task, tmp_path: Path):
    with pytest.raises(ConfigError, match="no pretraining objective"):
        Objectives(matched=False, mask_lm=False, obj_predict=False, qa=False)
    task = make_task(Objectives())
    rows, features = task.train, task.features
    captions, one = rows.keep(~rows.questions), rows.keep(rows.about({"image 2"}))
    for train, heldout, message in (
        (captions, rows, "no training sentence has a known answer: leave out --taskQA"),
        (one, rows, "all training sentences are about one image"),
        (rows, one, "all held-out sentences are about one image"),
    ):
        with pytest.raises(ConfigError, match=message):
            PretrainingTask(
                PretrainingData(train, heldout, features, ANSWERS),
                task.tokenizer,
                Objectives(),
                {"obj": 4, "attr": 3},
                make_runtime("cpu"),
                3,
            )
