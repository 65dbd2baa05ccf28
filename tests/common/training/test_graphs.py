"""Recorded passes: what is repeated gives what running gives.

See `tests.common.recording` for what is instead of a GPU.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from common.adapt import experts
from common.adapt.adapting import adaptive_part
from common.adapt.attention import LearnedSpans
from common.adapt.budget import BudgetOptions
from common.adapt.executors import STATIC
from common.adapt.layerdrop import LayerDrop
from common.modules.shapes import static_shapes
from common.training import graphs
from common.training.graphs import RecordedAnswers
from common.training.passes import Passes, Stage
from common.training.policy_lessons import PolicyTraining
from common.training.runtime import make_runtime
from common.training.task import StepOutput, TaskBatch
from tests.common.recording import Repeating
from tests.common.tiny_models import ADAPTIVE, BATCH, FAMILIES, adapted
from tests.common.toy_task import ToyTask, final_state, make_trainer, same


def trained(folder, recorder=None, executor="grouped", stop=0, resume=False, **settings):
    """The last state of a toy run, and what its log says."""
    runtime = replace(make_runtime("cpu"), recorder=recorder)
    trainer = make_trainer(folder, stop, runtime=runtime, **settings)
    if trainer.part is not None:
        trainer.part.options.executor = executor
    trainer.begin(resume=resume, overwrite=False)
    trainer.fit()
    return final_state(folder), (folder / "log.log").read_text()


def alike(tmp_path, exact=True, **settings):
    """Train with and without recordings, and compare; returns recorder and log."""
    recorder = Repeating()
    found, log = trained(tmp_path / "recorded", recorder, **settings)
    wanted, _ = trained(tmp_path / "run", **settings)
    if exact:
        same(found, wanted)
    else:
        for name, value in wanted["model"].items():
            torch.testing.assert_close(found["model"][name], value, rtol=1e-5, atol=1e-7)
    return recorder, log


@pytest.mark.parametrize("strategy", ["standard", "Frozen", *ADAPTIVE])
def test_a_recorded_training_is_that_which_is_run(tmp_path, strategy):
    recorder, log = alike(tmp_path, strategy=strategy, dropout=0.2)
    assert (recorder.recordings, recorder.repeats) == (1, 15)
    assert "not recorded" not in log


@pytest.mark.parametrize("strategy", ["BlockDrop", "BlockReplace", "SpotTune_Block"])
def test_products_by_group_are_recorded(tmp_path, strategy, monkeypatch):
    monkeypatch.setattr(experts, "groups", lambda x: True)
    recorder, log = alike(tmp_path, strategy=strategy, dropout=0.2)
    assert (recorder.recordings, recorder.repeats) == (1, 15)
    assert "not recorded" not in log


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_recorded(tmp_path, family):
    recorder, _ = alike(
        tmp_path, False, strategy="SpotTune_Block", family=family, dropout=0.0, double=True
    )
    assert (recorder.recordings, recorder.repeats) == (1, 15)


def test_micro_batches_add_their_gradients(tmp_path):
    recorder, _ = alike(tmp_path, strategy="SpotTune", accumulate=2)
    assert recorder.repeats == 30


def test_every_stage_of_a_training_has_a_recording(tmp_path):
    policy = PolicyTraining(warmup=0.2, start=1, hold=0.6)
    recorder, _ = alike(tmp_path, strategy="SpotTune_Block", policy=policy)
    assert (recorder.recordings, recorder.repeats) == (3, 15)


def test_a_run_goes_on_with_recordings_or_without(tmp_path):
    wanted, _ = trained(tmp_path / "whole", strategy="SpotTune")
    trained(tmp_path / "parts", Repeating(), strategy="SpotTune", stop=4)
    trained(tmp_path / "parts", strategy="SpotTune", stop=7, resume=True)
    found, _ = trained(tmp_path / "parts", Repeating(), strategy="SpotTune", resume=True)
    same(found, wanted)


class Growing(ToyTask):
    """Batches are as long as their longest text."""

    def read(self, indices, epoch):
        batch = super().read(indices, epoch)
        longest = int(batch.inputs["mask"].sum(1).max())
        batch.inputs = {name: x[:, :longest] for name, x in batch.inputs.items()}
        return batch


def growing(tmp_path, accumulate):
    settings = {"strategy": "SpotTune_Block", "dropout": 0.2, "accumulate": accumulate}
    recorder = Repeating()
    found, log = trained(tmp_path / "recorded", recorder, task=Growing(), **settings)
    same(found, trained(tmp_path / "run", task=Growing(), **settings)[0])
    return recorder, log


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_shape_has_a_recording(tmp_path, accumulate):
    """Also one that comes up first between two micro-batches."""
    recorder, log = growing(tmp_path, accumulate)
    assert recorder.recordings > 1 and recorder.repeats == 15 * accumulate
    assert "not recorded" not in log


@pytest.mark.parametrize("accumulate", [1, 2])
def test_more_shapes_than_recordings_are_run(tmp_path, monkeypatch, accumulate):
    """Also where one micro-batch is recorded and another one is not."""
    monkeypatch.setattr(graphs, "MOST", 1)
    recorder, log = growing(tmp_path, accumulate)
    assert recorder.recordings == 1 and 0 < recorder.repeats < 15 * accumulate
    assert log.count("there are 1 recordings, and batches of other shapes") == 1


class Asking(ToyTask):
    def __init__(self, ask):
        super().__init__()
        self.ask = ask

    def step(self, model, batch):
        found = super().step(model, batch)
        losses = {"answer": found.losses["answer"] + 0.0 * self.ask(batch.labels["label"])}
        return StepOutput(found.losses | losses, found.score_sum, found.count, found.scores)


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (lambda x: float(x.sum()), "_local_scalar_dense depends on what a tensor holds"),
        (lambda x: x[x > 1].sum(), "index depends on what a tensor holds"),
        (lambda x: torch.unique(x).sum(), "_unique2 depends on what a tensor holds"),
    ],
)
def test_a_task_that_asks_the_device_is_run_and_the_log_says_why(tmp_path, ask, why):
    settings = {"strategy": "SpotTune_Block"}
    found, log = trained(tmp_path / "recorded", Repeating(), task=Asking(ask), **settings)
    same(found, trained(tmp_path / "run", task=Asking(ask), **settings)[0])
    assert log.count("not recorded as a CUDA graph") == 1 and why in log


@pytest.mark.parametrize(
    ("why", "settings"),
    [
        ("executor exact takes samples apart", {"executor": "exact"}),
        ("--layerdrop leaves out", {"layerdrop": LayerDrop(0.3)}),
    ],
)
def test_what_cannot_be_recorded_is_run_and_the_log_says_why(tmp_path, why, settings):
    recorder, log = alike(tmp_path, strategy="SpotTune_Block", **settings)
    assert recorder.repeats == 0
    assert log.count("not recorded as a CUDA graph") == 1 and why in log


def test_an_error_of_the_device_is_no_end(tmp_path):
    class Broken(Repeating):
        def record(self, work):
            work()
            raise RuntimeError("operation not permitted when stream is capturing")

    settings = {"strategy": "SpotTune_Block", "dropout": 0.2}
    found, log = trained(tmp_path / "recorded", Broken(), **settings)
    same(found, trained(tmp_path / "run", **settings)[0])
    assert log.count("not permitted when stream is capturing") == 1


def test_answers_by_an_executor_that_takes_samples_apart_are_run():
    """Which executor it is, the pass itself says: it depends on its precision."""
    model = adapted("single", "BlockDrop", eval_executor="gathered").eval()
    recorder, said = Repeating(), []

    def run(batch: TaskBatch) -> torch.Tensor:
        with torch.no_grad():
            return model(**batch.inputs)

    answers = RecordedAnswers(model, run, recorder, said.append)
    batch = TaskBatch(list(range(BATCH)), FAMILIES["single"].inputs(BATCH))
    wanted = run(batch)
    for _ in range(3):
        adaptive_part(model).tell(3, -1, batch.samples)
        assert answers(batch).equal(wanted)
    assert not recorder.recordings
    assert len(said) == 1 and "--executor gathered takes samples apart" in said[0]


@pytest.mark.parametrize("strategy", ["standard", *ADAPTIVE])
@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_answers_are_those_that_are_run(family, strategy):
    options = {"eval_executor": "grouped", "policy_eval": "sample"}
    model = adapted(family, strategy, drift=0.3, **options).eval()
    part, recorder = adaptive_part(model), Repeating()
    seen: list[tuple] = []

    def run(batch: TaskBatch) -> torch.Tensor:
        with torch.no_grad():
            return model(**batch.inputs)

    answers = RecordedAnswers(model, run, recorder)
    inputs = FAMILIES[family].inputs(BATCH)
    for step in range(4):
        order = torch.arange(BATCH).roll(step)
        batch = TaskBatch(order.tolist(), {k: x[order] for k, x in inputs.items()})
        if part is not None:
            part.tell(3, -1, batch.samples)
            wanted = run(batch)
            decided = part.last.decisions
            part.tell(3, -1, batch.samples)
            part.observer = lambda samples, decisions: seen.append((samples, decisions))
        else:
            wanted = run(batch)
        torch.testing.assert_close(answers(batch), wanted, rtol=1e-10, atol=1e-10)
        if part is not None:
            part.observer = None
            torch.testing.assert_close(part.last.decisions, decided)
            ((samples, noted),) = seen
            assert list(samples) == batch.samples and torch.equal(noted, decided)
            seen.clear()
    assert (recorder.recordings, recorder.repeats) == (1, 3)


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", ["standard", *ADAPTIVE])
@pytest.mark.parametrize("executor", STATIC)
def test_a_pass_needs_nothing_but_its_device(monkeypatch, family, strategy, executor):
    """Tensors of the meta device hold nothing, and do not go together with those of the CPU."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **more: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    device, task = torch.device("meta"), ToyTask(family=family)
    model = adapted(family, strategy, dropout=0.2, executor=executor, eval_executor=executor)
    model, part = model.to(device), adaptive_part(model)
    runtime = replace(make_runtime("cpu"), device=device)
    batch = runtime.move(task.read([0, 1, 2, 3], 0))
    if part is not None:
        noise = torch.empty(4, 2 * len(part.live), device=device)
        part.drawn = noise, torch.empty((), device=device)
    passes = Passes(
        model, task, part, LearnedSpans(model), runtime, BudgetOptions(target_rate=0.5), None
    )
    with static_shapes():
        computed = passes.forward(batch, Stage())
        passes.backward(computed, dict.fromkeys(computed.losses, 1.0))
        model.eval()
        with torch.no_grad():
            assert model(**batch.inputs).device == device
    assert all(loss.device == device for loss in computed.losses.values())
