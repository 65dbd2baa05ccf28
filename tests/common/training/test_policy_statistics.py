"""What is recorded of the policy: against a direct computation, split, resumed, and of controls."""

from __future__ import annotations

import json
import math

import pytest
import torch

from common.adapt.adapting import adaptive_part
from common.adapt.budget import BudgetOptions
from common.adapt.drifting import drift
from common.adapt.families import find_encoder
from common.errors import ConfigError
from common.training.checkpoint import load_checkpoint, save_checkpoint
from common.training.policy_lessons import PolicyTraining
from common.training.policy_report import policy_line, policy_scalars
from common.training.policy_statistics import WINDOWS, PolicyStatistics
from tests.common.tiny_models import ADAPTIVE, adapted
from tests.common.toy_task import ToyTask, final_state, flat, make_trainer, same

KINDS = ("new", "old", "old")
EXACT = {"double": True, "dropout": 0.0, "epochs": 1, "budget": BudgetOptions()}


class KindTask(ToyTask):
    """The toy task with kinds of samples; keeps the logits of its steps for their gradients."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def read(self, indices, epoch):
        batch = super().read(indices, epoch)
        batch.kinds = [KINDS[i % 3] for i in indices]
        return batch

    def step(self, model, batch):
        found = super().step(model, batch)
        last = adaptive_part(model).last
        if model.training and last.logits is not None:
            if last.logits.requires_grad:
                last.logits.retain_grad()
            self.seen.append((last.logits, batch.types, batch.kinds))
        return found

    def validate(self, model):
        adaptive_part(model).tell(0, -1, range(22), [KINDS[i % 3] for i in range(22)])
        return super().validate(model)


def entropy(p):
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_an_epoch_s_statistics_are_those_of_its_samples(tmp_path, strategy):
    task = KindTask()
    trainer = make_trainer(
        tmp_path, task=task, strategy=strategy, policy_clip=1e9, **EXACT | {"epochs": 2}
    )
    norms, step = [], trainer._train_step

    def watched(parts, counts):
        step(parts, counts)
        norms.append(math.hypot(*(p.grad.norm() for p in trainer.part.policy.parameters())))

    trainer._train_step = watched
    trainer.fit()
    found, live = trainer.history[1]["policy"], trainer.part.live
    seen = task.seen[5:]  # of the second epoch
    p = torch.stack([logits.detach().softmax(-1)[..., 1] for logits, _, _ in seen])  # (5, 4, D)
    every = p.flatten(0, 1)
    assert found["count"] == 20 and len(found["each"]["p"]) == len(live)
    for name, direct in (
        ("p", every.mean(0)),
        ("entropy", entropy(every).mean(0)),
        ("spread", p.var(1).mean(0).sqrt()),  # apart from how the policy moves between steps
    ):
        torch.testing.assert_close(
            torch.tensor(found["each"][name]).double(), direct, rtol=1e-6, atol=1e-7
        )
        assert found[name] == pytest.approx(float(direct[live].mean()), rel=1e-6)
    for family, names in (
        ("type", [name for _, types, _ in seen for name in types]),
        ("kind", [name for _, _, kinds in seen for name in kinds]),
    ):
        told, groups = found["information"][family], sorted(set(names))
        rows = [torch.tensor([name == group for name in names]) for group in groups]
        share = [float(row.double().mean()) for row in rows]
        parts = [part * entropy(every[row].mean(0)) for part, row in zip(share, rows, strict=True)]
        direct = entropy(every.mean(0)) - sum(parts)
        torch.testing.assert_close(
            torch.tensor(told["each"]).double(), direct, rtol=1e-5, atol=1e-9
        )
        assert told["most"] == pytest.approx(float(direct[live].max()), rel=1e-5, abs=1e-9)
        assert told["of"] == pytest.approx(-sum(part * math.log(part) for part in share))
    gradient = torch.cat([logits.grad[..., 1] for logits, _, _ in seen])[:, live]
    torch.testing.assert_close(seen[0][0].grad[..., 0], -seen[0][0].grad[..., 1])
    agreement = (gradient.sum(0).abs() / gradient.abs().sum(0)).mean()
    assert found["gradient"]["agreement"] == pytest.approx(float(agreement), rel=1e-6)
    assert found["gradient"]["norm"] == pytest.approx(sum(norms[5:]) / 5, rel=1e-6)
    assert (found["drift"] is None) == (trainer.part.strategy.other != "twin")
    json.dumps(found, allow_nan=False)


def test_micro_batches_change_nothing(tmp_path):
    records = []
    for accumulate in (1, 2):
        trainer = make_trainer(
            tmp_path / str(accumulate), task=KindTask(), accumulate=accumulate, **EXACT
        )
        trainer.fit()
        records.append(flat(trainer.history[0]["policy"]))
    assert records[0] == pytest.approx(records[1], rel=1e-7, abs=1e-9)


TAUGHT = {"policy": PolicyTraining(start=1), "save_every": 1, "budget": BudgetOptions()}


def test_a_resumed_epoch_is_recorded_bit_for_bit_with_what_the_pretrained_model_knew(tmp_path):
    whole = make_trainer(tmp_path / "whole", task=KindTask(), **TAUGHT)
    whole.fit()
    make_trainer(tmp_path / "parts", task=KindTask(), max_steps=7, **TAUGHT).fit()
    resumed = make_trainer(tmp_path / "parts", task=KindTask(), **TAUGHT)
    resumed.resume()
    resumed.fit()
    same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))
    assert all(record["policy"]["gradient"] for record in whole.history)
    assert whole.history[1]["policy"]["count"] == 20
    told = whole.history[1]["policy"]["information"]
    right = sum(score > 0.5 for score in whole.lessons.frozen.values()) / 20
    assert set(told) == {"type", "kind", "pretrained"} and 0 < right < 1
    known = [score > 0.5 for key, score in whole.lessons.frozen.items()]
    assert 0 < told["pretrained"]["of"] <= math.log(2) and any(known)


def test_a_run_that_was_saved_before_there_were_statistics_goes_on(tmp_path):
    make_trainer(tmp_path, max_steps=7).fit()
    path = tmp_path / "LAST.safetensors"
    state, meta = load_checkpoint(path)
    for process in state["processes"]:
        assert process["running"].pop("policy")["sums"] is not None
    for record in state["progress"]["history"]:
        del record["policy"]
    save_checkpoint(path, state, meta)
    trainer = make_trainer(tmp_path)
    trainer.resume()
    trainer.fit()
    counts = [record.get("policy", {}).get("count") for record in trainer.history]
    assert counts == [None, 12, 20]


def test_a_held_policy_has_no_gradient(tmp_path):
    trainer = make_trainer(tmp_path, policy=PolicyTraining(hold=0.4), budget=BudgetOptions())
    trainer.fit()
    gradients = [record["policy"]["gradient"] for record in trainer.history]
    assert gradients[0] is None and gradients[1]["norm"] > 0 and 0 <= gradients[2]["agreement"] <= 1
    lines = [policy_line(record["policy"]) for record in trainer.history]
    assert "no gradient" in lines[0] and "agreement of inputs" in lines[1]
    first = trainer.history[0]["policy"]
    alone = {"type": {"most": 0.0, "mean": 0.0, "of": 0.0, "each": []}}
    assert "tells at most" not in policy_line(first | {"information": alone}), (
        "one group says nothing"
    )
    curves = policy_scalars(first)
    assert curves["policy/gradient_norm"] is None and curves["policy/drift"] > 0
    assert policy_scalars(None) == {}


def test_in_the_warm_up_and_without_a_policy_nothing_is_recorded(tmp_path):
    warm = make_trainer(tmp_path / "warm", policy=PolicyTraining(warmup=1 / 3))
    warm.fit()
    assert [record["policy"] is None for record in warm.history] == [True, False, False]
    plain = make_trainer(tmp_path / "plain", strategy="standard")
    plain.fit()
    assert not any("policy" in record for record in plain.history)


@pytest.mark.parametrize("policy", ["shared", "random:0.3", "oracle:new"])
def test_controls_tell_nothing_or_everything(tmp_path, policy):
    trainer = make_trainer(tmp_path, task=KindTask(), decider=policy, **EXACT | {"epochs": 2})
    trainer.fit()
    found = trainer.history[1]["policy"]
    told = found["information"]["kind"]
    assert (found["gradient"] is None) == (policy != "shared")
    if policy == "oracle:new":
        assert found["entropy"] < 1e-9 and found["spread"] > 0.4
        assert told["mean"] == pytest.approx(told["of"], rel=1e-9) and told["of"] > 0.6
    else:
        assert found["spread"] < 1e-6 and told["most"] < (1e-3 if policy == "shared" else 1e-9)
    if policy == "random:0.3":
        assert found["p"] == pytest.approx(0.3, abs=1e-6)
        assert found["entropy"] == pytest.approx(float(entropy(torch.tensor(0.3))), abs=1e-6)


@pytest.mark.parametrize(
    ("strategy", "policy", "why"),
    [
        ("SpotTune", "shared", "decides the same for all samples"),
        ("SpotTune", "random:0.3", "random draws its decisions"),
        ("BlockDrop", "oracle:new", "oracle:new decides by the kind"),
        ("BlockReplace", "small", "BlockReplace are linear maps"),
        ("standard", "small", "decides nothing"),
    ],
)
def test_what_cannot_be_taught_is_refused_before_training(tmp_path, strategy, policy, why):
    with pytest.raises(ConfigError, match=f"--policy-start and --policy-review .*{why}"):
        make_trainer(tmp_path, strategy=strategy, decider=policy, policy=PolicyTraining(start=1))


def test_movement_of_the_policy_is_not_taken_for_a_difference_of_inputs():
    statistics = PolicyStatistics()
    for step in range(10):
        odds = torch.full((6, 2), -2.0 + 0.4 * step)
        statistics.add(torch.stack([-odds / 2, odds / 2], -1), step / 10, {})
    found = statistics.record(torch.tensor([True, False]))
    assert found["spread"] < 1e-7 and found["count"] == 60 and found["information"] == {}
    assert WINDOWS >= 10 and PolicyStatistics().record(torch.tensor([True])) is None


def test_the_scale_of_a_loss_is_taken_out_of_the_gradient_and_infinite_ones_left_out():
    found = []
    for units in ((1.0, 1.0), (2.0, 1024.0)):
        statistics = PolicyStatistics()
        for unit, sign in zip(units, (1.0, -0.5), strict=True):
            logits = torch.zeros(3, 2, 2, requires_grad=True)
            used = logits * 1
            used.retain_grad()
            statistics.add(used, 0.0, {})
            (used[..., 1].sum() * sign * unit).backward()
            statistics.add_gradient(used.grad, torch.tensor(unit))
        used = logits * 1
        used.retain_grad()
        statistics.add(used, 0.0, {})
        (used.sum() * math.inf).backward()
        statistics.add_gradient(used.grad, 1.0)
        for norm in (1.0, math.inf, 2.0):
            statistics.add_norm(torch.tensor(norm))
        found.append(statistics.record(torch.tensor([True, True]))["gradient"])
    assert found[0] == found[1] == {"norm": 1.5, "agreement": pytest.approx(1 / 3)}


@pytest.mark.parametrize("family", ["single", "lxmert", "vilbert", "vlbert"])
def test_drift_is_the_distance_from_the_twins_in_their_size(family):
    model = adapted(family, "SpotTune_Block", drift=0.05)
    part, encoder = adaptive_part(model), find_encoder(model)
    found, moved, size = drift(model), 0.0, 0.0
    for layer in encoder.layers():
        ours, theirs = (
            torch.cat([p.detach().flatten() for p in module.parameters()])
            for module in (encoder.get_submodule(layer.path), part.twin(layer.name))
        )
        ratio = (ours - theirs).norm() / theirs.norm()
        assert found["layers"][layer.name] == pytest.approx(float(ratio), rel=1e-9)
        moved, size = moved + (ours - theirs).norm() ** 2, size + theirs.norm() ** 2
    assert found["overall"] == pytest.approx(math.sqrt(moved / size), rel=1e-9)
    assert (
        drift(adapted(family, "BlockDrop")) is None and drift(adapted(family, "standard")) is None
    )
