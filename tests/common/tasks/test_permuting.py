"""Decisions that are exchanged among the samples of a whole data set."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from common.adapt.adapting import adaptive_part, set_global_decisions
from common.adapt.assigning import assign_decisions, note_decisions, permuted
from common.tasks.evaluation import EVALUATION, Evaluation
from common.tasks.permuting import noting, permuted_evaluation
from common.training.distributed import World
from common.training.task import DecisionCounts
from tests.common.tiny_models import ADAPTIVE, FAMILIES, adapted, spread_policy

COUNT = 20


class Evaluated:
    """Evaluates the tiny samples batch by batch; keeps the logits, and the names it was given."""

    def __init__(self, family, size, backwards=False):
        self.inputs, self.size, self.names = FAMILIES[family].inputs(COUNT), size, []
        self.order = list(reversed(range(COUNT))) if backwards else list(range(COUNT))
        self.runtime = SimpleNamespace(world=World())

    @torch.no_grad()
    def evaluate(self, model, data, name):
        self.names.append(name)
        model.eval()
        found, counts, part = {}, DecisionCounts(), adaptive_part(model)
        for first in range(0, COUNT, self.size):
            rows = self.order[first : first + self.size]
            part.tell(1, EVALUATION, [1000 + row for row in rows])
            logits = model(**{key: x[rows] for key, x in self.inputs.items()})
            counts.add(part.last.decisions)
            found |= zip(rows, logits, strict=True)
        return Evaluation(found, None, counts, 0.0)


def deciding(family, strategy, policy="small"):
    model = adapted(family, strategy, drift=0.3, policy=policy)
    if policy == "small":
        spread_policy(model, family)
    return model.eval()


@pytest.mark.parametrize("family", ["single", "lxmert", "vilbert", "vlbert"])
@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_every_sample_runs_with_another_one_s_decisions(family, strategy):
    model, task = deciding(family, strategy), Evaluated(family, 8)
    part = adaptive_part(model)
    with noting(model) as noted:
        plain = task.evaluate(model, None, "plain")
    found = permuted_evaluation(model, task, None, 7, noted)
    assert task.names == ["plain", "decisions permuted"], "one evaluation more"
    assert found.decisions.share == plain.decisions.share
    given = permuted(noted, 7)
    moved = [key for key in noted if not torch.equal(given[key], noted[key])]
    assert len(moved) > COUNT / 4
    for row in range(COUNT):
        one = {key: x[[row]] for key, x in task.inputs.items()}
        with part.force(given[1000 + row].double()), torch.no_grad():
            expected = model(**one)[0]
        # Alone a sample is as long as in its batch: the inputs are padded already.
        torch.testing.assert_close(found.predictions[row], expected, rtol=1e-9, atol=1e-9)
    changed = sum(not torch.equal(found.predictions[r], plain.predictions[r]) for r in range(COUNT))
    assert changed > COUNT / 4
    again = task.evaluate(model, None, "plain")
    assert all(torch.equal(again.predictions[r], plain.predictions[r]) for r in range(COUNT))


def test_it_depends_on_the_seed_but_not_on_batches_or_on_who_takes_decisions_down():
    model = deciding("lxmert", "SpotTune")
    first = permuted_evaluation(model, Evaluated("lxmert", 8), None, 7)
    other = permuted_evaluation(model, Evaluated("lxmert", 3, backwards=True), None, 7)
    for row in range(COUNT):
        torch.testing.assert_close(first.predictions[row], other.predictions[row])
    third = permuted_evaluation(model, Evaluated("lxmert", 8), None, 8)
    assert any(not torch.equal(first.predictions[r], third.predictions[r]) for r in range(COUNT))


def test_two_processes_exchange_decisions_with_each_other():
    model = deciding("single", "SpotTune")
    with noting(model) as noted:
        Evaluated("single", 8).evaluate(model, None, "plain")
    whole = permuted_evaluation(model, Evaluated("single", 8), None, 7, noted)
    halves = [{k: v for k, v in noted.items() if k % 2 == rest} for rest in (0, 1)]
    sent = []

    def gather(value):
        sent.append(value)
        return [(list(h), torch.stack(list(h.values()))) for h in halves]

    task = Evaluated("single", 8)
    task.runtime = SimpleNamespace(world=SimpleNamespace(gather=gather))
    found = permuted_evaluation(model, task, None, 7, halves[1])
    assert sent[0][0] == list(halves[1]) and torch.equal(
        sent[0][1], torch.stack([*halves[1].values()])
    )
    for row in range(COUNT):
        assert torch.equal(found.predictions[row], whole.predictions[row])


@pytest.mark.parametrize("policy", ["shared", "random:0.5", "global", "sample", "plain"])
def test_nothing_is_evaluated_where_nothing_would_change(policy):
    named = policy if ":" in policy or policy == "shared" else "small"
    model = deciding("single", "SpotTune", named)
    part, task = adaptive_part(model), Evaluated("single", 8)
    if policy == "global":
        set_global_decisions(part, torch.ones(len(part.live)))
    if policy in ("global", "sample"):
        part.options.policy_eval = policy
    if policy == "plain":
        model = adapted("single", "standard")
    assert permuted_evaluation(model, task, None, 7) is None
    assert task.names == (["decisions"] if policy == "shared" else [])


def test_decisions_are_given_to_samples_that_are_named():
    model = deciding("single", "SpotTune")
    part, inputs = adaptive_part(model), FAMILIES["single"].inputs(2)
    with note_decisions(part) as noted:
        part.tell(0, 0, [5, 6])
        model(**inputs)
        assert torch.equal(part.last.decisions, torch.stack([noted[5], noted[6]]).double())
        assert not torch.equal(noted[5], noted[6])
        with pytest.raises(ValueError, match="whose decisions are these"):
            model(**inputs)
    turned = {5: 1 - noted[5], 6: noted[6]}
    with assign_decisions(part, turned):
        part.tell(0, 0, [6, 5])
        model(**inputs)
    assert torch.equal(part.last.decisions, torch.stack([turned[6], turned[5]]).double())
