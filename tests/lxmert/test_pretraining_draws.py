"""What is random in LXMERT's pretraining: how often, where from, and keyed by the sample."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from common.errors import DataError
from common.tasks.pretraining import VALIDATION
from lxrt.pretraining_masking import Draws, draw_answer, mask_words
from lxrt.pretraining_objectives import Objectives
from lxrt.pretraining_sentences import Sentences, SentencesBuilder
from lxrt.pretraining_task import PretrainingTask
from tests.lxmert.pretraining_files import task_maker

ANSWERS = ["yes", "no", "two", "red"]
SENTENCE = "one red dog and two blue men sit at a round table near the old brown house"  # 17 words


def sentences(count: int = 400, images: int = 25) -> Sentences:
    """Every sentence names its image, so that a replaced one is recognised."""
    builder = SentencesBuilder()
    for place in range(count):
        image = place * 7 % images
        builder.add(
            f"image {image}",
            "vqa",
            f"{SENTENCE} {image}",
            {0: 0.9, 2: 0.3} if place % 2 else {1: 1.0},
        )
    return builder.build()


@pytest.fixture(scope="module")
def make_task(tmp_path_factory: pytest.TempPathFactory):
    return task_maker(tmp_path_factory.mktemp("draws"), sentences(), ANSWERS, boxes=(4, 3))


@pytest.fixture(scope="module")
def task(make_task) -> PretrainingTask:
    return make_task(Objectives())


def tables(batch) -> dict[str, Tensor]:
    return {name: x for name, x in (batch.inputs | batch.labels).items() if x is not None}


def test_what_is_drawn_for_a_sample_does_not_depend_on_its_batch(task):
    """Alone, in another order, in another batch: the same words, regions, labels and answers."""
    whole = tables(task.read(list(range(40)), 1))
    for rows in ([7], [39, 7, 12], list(range(5, 9))):
        part = tables(task.read(rows, 1))
        for name, x in part.items():
            for place, row in enumerate(rows):
                alone, expected = x[place], whole[name][row]
                # A smaller batch may be padded less.
                common = expected[tuple(slice(n) for n in alone.shape)] if alone.dim() else expected
                assert torch.equal(alone, common), (name, row)


def test_every_epoch_and_every_seed_draws_anew_and_validation_never_does(make_task, task):
    rows = list(range(60))

    def drawn(task: PretrainingTask, epoch: int) -> list[Tensor]:
        batch = task.draw(task.train, rows, epoch)
        return [
            batch.labels[n] for n in ("word_labels", "feat_mask", "matched_label", "answer_label")
        ] + [batch.inputs["features"]]

    first = drawn(task, 0)
    for other in (
        drawn(task, 1),
        drawn(make_task(Objectives(), seed=4), 0),
        drawn(task, VALIDATION),
    ):
        for a, b in zip(first, other, strict=True):
            assert a.shape != b.shape or not torch.equal(a, b)
    for a, b in zip(first, drawn(task, 0), strict=True):
        assert torch.equal(a, b)
    scores = []

    class Recorder(torch.nn.Module):
        def forward(self, **inputs):
            scores.append(inputs["input_ids"].sum() + inputs["features"].sum())
            raise StopIteration

    for _ in range(2):
        with pytest.raises(StopIteration):
            task.validate(Recorder())
    assert torch.equal(scores[0], scores[1])


def test_words_are_masked_as_in_bert_and_never_the_first_the_last_or_padding(task):
    """15 %; of these 80 % [MASK], 10 % a random piece, 10 % kept; labels are the original ids."""
    batch = task.tokenizer.encode([SENTENCE] * 2000 + ["one dog"] * 500)
    ids, mask = batch
    masked, labels = mask_words(ids, mask, 0.15, task.tokenizer, Draws(1, 2, range(2500)))
    chosen = labels >= 0
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])
    lengths = mask.sum(1)
    inner = (torch.arange(ids.shape[1]) > 0) & (torch.arange(ids.shape[1]) < lengths[:, None] - 1)
    assert not chosen[~inner].any()
    assert chosen[inner].double().mean() == pytest.approx(0.15, abs=0.006)
    became, was = masked[chosen], ids[chosen]
    shares = {"masked": became == task.tokenizer.mask_id, "kept": became == was}
    assert shares["masked"].double().mean() == pytest.approx(0.8, abs=0.02)
    assert shares["kept"].double().mean() == pytest.approx(0.1, abs=0.015)
    random = became[~shares["masked"] & ~shares["kept"]]
    assert len(set(random.tolist())) > 0.6 * len(task.tokenizer), "any piece can come"
    assert int(random.max()) < len(task.tokenizer) and int(random.min()) < 5


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_mask_rates_of_zero_and_one_mask_nothing_and_everything(make_task, rate):
    task = make_task(Objectives(word_mask_rate=rate, obj_mask_rate=rate))
    batch = task.read(list(range(50)), 0)
    assert bool((batch.labels["word_labels"] >= 0).any()) == bool(rate)
    present = batch.inputs["region_mask"].bool()
    assert (batch.labels["feat_mask"][present] == rate).all()
    assert not batch.labels["feat_mask"][~present].any()


def test_regions_become_zeros_regions_of_training_images_or_stay(task, make_task):
    """15 %; of these 80 % zeros, 10 % another image's region, 10 % kept; targets stay as read."""
    known = {
        tuple(row)
        for n in range(25)
        for row in task.features.stores[0].get(f"image {n}").features.tolist()
    }
    assert len(known) > 60
    counts = {"all": 0, "masked": 0, "zero": 0, "kept": 0, "replaced": 0}
    for start in range(0, 400, 100):
        batch = task.read(list(range(start, start + 100)), 5)
        given, target = batch.inputs["features"], batch.labels["feat_target"]
        masked, present = batch.labels["feat_mask"].bool(), batch.inputs["region_mask"].bool()
        assert torch.equal(given[~masked], target[~masked]) and not masked[~present].any()
        original = task.features.read([task.train.image_id(row) for row in batch.samples])
        assert torch.equal(target, original.features)
        assert torch.equal(batch.inputs["boxes"], original.normalised_boxes())
        zero, kept = (given == 0).all(-1) & masked, (given == target).all(-1) & masked
        replaced = masked & ~zero & ~kept
        assert {tuple(row) for row in given[replaced].tolist()} <= known
        for name, places in (
            ("all", present),
            ("masked", masked),
            ("zero", zero),
            ("kept", kept),
            ("replaced", replaced),
        ):
            counts[name] += int(places.sum())
    assert counts["masked"] / counts["all"] == pytest.approx(0.15, abs=0.03)
    for name, share in (("zero", 0.8), ("kept", 0.1), ("replaced", 0.1)):
        assert counts[name] / counts["masked"] == pytest.approx(share, abs=0.07), name


def test_half_of_the_sentences_are_replaced_by_ones_about_other_images(task):
    replaced = 0
    for start in range(0, 400, 100):
        batch = task.read(list(range(start, start + 100)), 3)
        rows, matched = task._rows(task.train, batch.samples, Draws(3, 3, batch.samples))
        assert torch.equal(matched, batch.labels["matched_label"])
        for row, source, own in zip(batch.samples, rows, matched.tolist(), strict=True):
            assert (row == source) == bool(own)
            assert own or task.train.image_id(source) != task.train.image_id(row)
        unmatched = batch.labels["matched_label"] == 0
        assert (batch.labels["answer_label"][unmatched] == -1).all()
        assert (batch.labels["answer_label"][~unmatched] >= 0).all()
        replaced += int(unmatched.sum())
    assert replaced / 400 == pytest.approx(0.5, abs=0.08)


def test_without_matching_no_sentence_is_replaced(make_task):
    batch = make_task(Objectives(matched=False)).read(list(range(100)), 0)
    assert "matched_label" not in batch.labels and (batch.labels["answer_label"] >= 0).all()


def test_every_sentence_about_another_image_can_come_instead_each_as_likely():
    rows = sentences(30, 4)
    for row in range(30):
        others = [r for r in range(30) if rows.image_id(r) != rows.image_id(row)]
        middles = (torch.arange(len(others), dtype=torch.float64) + 0.5) / len(others)
        assert sorted(rows.of_other_images([row] * len(others), middles)) == others


def test_answers_are_drawn_in_proportion_to_their_soft_scores(task):
    labels, scores = task.train.answers(1)
    assert labels.tolist() == [0, 2] and scores.tolist() == pytest.approx([0.9, 0.3])
    drawn = [draw_answer(labels, scores, (n + 0.5) / 400) for n in range(400)]
    assert [drawn.count(label) for label in (0, 2)] == [300, 100]
    assert draw_answer(labels[:0], scores[:0], 0.5) == -1
    seen = torch.stack(
        [
            task.read([r for r in range(400) if r % 2], epoch).labels["answer_label"]
            for epoch in range(6)
        ]
    )
    assert set(seen.flatten().tolist()) == {-1, 0, 2}
    assert (seen == 0).sum() / (seen >= 0).sum() == pytest.approx(0.75, abs=0.06)


def test_fine_numbers_tell_millions_of_sentences_apart():
    numbers = Draws(1, 0, range(4000)).fine(0, 2)
    assert float(numbers.min()) > 0 and float(numbers.max()) < 1
    assert float(numbers.mean()) == pytest.approx(0.5, abs=0.02)
    below = numbers * 2**23 - torch.floor(numbers * 2**23)
    assert len(below.flatten().unique()) > 7900, "digits below those of a single number"


def test_classes_that_the_model_does_not_have_are_named(make_task):
    task = make_task(Objectives())
    task.classes["obj"] = 2
    with pytest.raises(DataError, match=re.escape("are not all in 0..1, which the model has")):
        task.read(list(range(20)), 0)
