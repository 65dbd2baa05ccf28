"""What a policy is taught before and while it is held: targets, resuming, gradients."""

from __future__ import annotations

import pytest
import torch

from common.adapt.budget import BudgetOptions
from common.errors import StoppedError
from common.training.policy_lessons import PolicyTraining
from tests.common.toy_task import final_state, make_trainer, same

STARTED = {
    "policy": PolicyTraining(start=3, hold=0.4, review=1),
    "budget": BudgetOptions(),
    "save_every": 1,
}


def fitted(folder, **options):
    trainer = make_trainer(folder, **STARTED | options)
    trainer.fit()
    return trainer


@torch.no_grad()
def finetunes(trainer, key: int) -> torch.Tensor:
    """Probability of decision 1 at the live sites for one sample, in evaluation mode."""
    trainer.model.eval()
    trainer.model(**trainer.task.read([key], 0).inputs)
    return trainer.part.last.logits.softmax(-1)[0, trainer.part.live, 1]


@torch.no_grad()
def score_with(trainer, key: int, decisions: torch.Tensor) -> float:
    """Whether a sample is answered rightly with these decisions."""
    trainer.model.eval()
    with trainer.part.force(decisions):
        return float(trainer.task.step(trainer.model, trainer.task.read([key], 0)).scores[0])


@pytest.mark.parametrize("strategy", ["SpotTune_Block", "SpotTune", "SpotTune_Res"])
def test_the_start_finetunes_where_the_pretrained_model_fails(tmp_path, strategy):
    trainer = make_trainer(
        tmp_path, strategy=strategy, dropout=0.0, policy=PolicyTraining(start=30, hold=1.0)
    )
    live = len(trainer.part.live)
    fails = [1 - score_with(trainer, key, torch.zeros(live)) for key in range(22)]
    assert 0 < sum(fails) < 22, "the toy model is right or wrong everywhere"
    before = {n: p.clone() for n, p in trainer.model.named_parameters() if ".policy." not in n}
    assert trainer._policy_started()
    for name, value in before.items():
        assert torch.equal(dict(trainer.model.named_parameters())[name], value), name
    taught = trainer.lessons.frozen
    assert len(taught) == 20  # whole batches
    assert all(taught[key] == 1 - fails[key] for key in taught)
    for key in taught:
        wanted = torch.full((), fails[key]).double()
        assert (finetunes(trainer, key).double() - wanted).abs().max() < 0.4, key


def test_the_loss_of_a_pass_is_a_mean_in_which_right_answers_count_half(tmp_path):
    trainer = make_trainer(
        tmp_path, strategy="SpotTune_Block", dropout=0.0, policy=PolicyTraining(start=1, hold=1.0)
    )
    lessons = trainer.lessons
    lessons.lr = 0.0  # so that the policy is the same in the whole pass
    found = lessons.start(1, lambda: None, lambda: False)
    weights, losses = [], []
    for key, score in lessons.frozen.items():
        p = finetunes(trainer, key).double()
        losses.append(float(-(p if score < 0.5 else 1 - p).log().mean()))
        weights.append(1 - 0.5 * score)
    assert 0.5 in weights and 1.0 in weights
    wanted = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_blocks_that_are_not_missed_are_skipped(tmp_path):
    trainer = make_trainer(
        tmp_path, strategy="BlockDrop", dropout=0.0, policy=PolicyTraining(start=1, hold=1.0)
    )
    trainer.lessons.begin()
    live = len(trainer.part.live)
    for key, worth in trainer.lessons._targets.items():
        whole = score_with(trainer, key, torch.ones(live))
        for place in trainer.part.live.nonzero()[:, 0].tolist():
            without = torch.ones(live)
            without[place] = 0
            assert worth[place] == float(score_with(trainer, key, without) < whole)


@pytest.mark.parametrize("strategy", ["SpotTune_Block", "BlockDrop"])
def test_a_run_that_is_stopped_at_any_time_goes_on_bit_for_bit(tmp_path, monkeypatch, strategy):
    """In the start as well, before and between its passes."""
    monkeypatch.setattr("common.training.policy_lessons.SAVE_SECONDS", 0.0)
    fitted(tmp_path / "whole", strategy=strategy)
    for stop in (1, 3, 6):
        folder = tmp_path / f"stopped_{stop}"
        trainer = make_trainer(folder, strategy=strategy, **STARTED)
        save, saves = trainer.save_last, [0]

        def saved(save=save, saves=saves, trainer=trainer, stop=stop):
            save()
            saves[0] += 1
            if saves[0] == stop:
                trainer._signal._signalled = True

        trainer.save_last = saved
        with pytest.raises(StoppedError, match="--resume"):
            trainer.fit()
        resumed = make_trainer(folder, strategy=strategy, **STARTED)
        torch.manual_seed(stop)  # what was drawn so far is in the checkpoint
        resumed.resume()
        if stop <= 3:
            assert (resumed.step, resumed.lessons.passes) == (0, stop - 1)
        resumed.fit()
        same(final_state(tmp_path / "whole"), final_state(folder))


def test_the_start_saves_what_it_measured_and_what_it_taught_when_it_ends_or_is_stopped(tmp_path):
    """And between its passes only where the last save is some time ago."""
    lessons, saved = make_trainer(tmp_path, **STARTED).lessons, []
    lessons.start(5, lambda: saved.append(lessons.passes), lambda: lessons.passes == 2)
    assert saved == [0, 2]
    lessons.start(5, lambda: saved.append(lessons.passes), lambda: False)
    assert saved == [0, 2, 5]


def test_a_held_policy_stays_as_it_is_and_decides_as_in_evaluation(tmp_path):
    trainer = make_trainer(tmp_path, **STARTED | {"policy": PolicyTraining(start=2, hold=0.4)})
    at = {}
    step = trainer._train_step

    def watched(parts, counts):
        at[trainer.step] = [p.clone() for p in trainer.part.policy.parameters()]
        step(parts, counts)
        if trainer.step <= 6:
            decided = trainer.part.last
            likelier = decided.logits[..., 1] > decided.logits[..., 0]
            assert torch.equal(decided.decisions, likelier.to(decided.decisions))

    trainer._train_step = watched
    trainer.fit()
    for number in range(1, 7):  # 0.4 of 15 steps
        assert all(torch.equal(a, b) for a, b in zip(at[0], at[number], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(at[0], at[8], strict=True))


def test_in_the_warm_up_all_samples_take_the_frozen_branch(tmp_path):
    trainer = make_trainer(
        tmp_path, **STARTED | {"policy": PolicyTraining(warmup=0.2, start=2, hold=0.4)}
    )
    used, step = {}, trainer._train_step

    def watched(parts, counts):
        used[trainer.step] = trainer.lessons.passes
        step(parts, counts)
        if trainer.step <= 3:
            assert not trainer.part.last.decisions.any()

    trainer._train_step = watched
    trainer.fit()
    assert [used[i] for i in range(5)] == [0, 0, 0, 2, 2]


def test_what_the_review_measures_decides_between_the_branches(tmp_path):
    everywhere = PolicyTraining(start=1, hold=1.0)
    trainer = make_trainer(tmp_path, dropout=0.0, policy=everywhere, optimizer="adamw")
    trainer._policy_started()
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    live = len(trainer.part.live)
    zero, one = torch.zeros(live), torch.ones(live)
    gain = {
        key: score_with(trainer, key, one) - score_with(trainer, key, zero)
        for key in trainer.lessons.frozen
    }
    assert any(gain.values()), "both branches answer alike"
    trainer.lessons.review(150, 0)
    for key, value in gain.items():
        if value:
            assert ((finetunes(trainer, key) > 0.5) == (value > 0)).all()
