"""The training loop: resuming bit for bit, best epoch, saves, non-finite losses."""

from __future__ import annotations

import functools
import itertools
import json
import operator
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from common.adapt.adapting import adaptive_part
from common.adapt.budget import BudgetOptions
from common.errors import AdaptiveError, CheckpointError, ConfigError, StoppedError
from common.training.batch_order import BatchOrder
from common.training.checkpoint import load_checkpoint, save_checkpoint
from common.training.stop_signal import StopSignal
from tests.common.toy_task import ToyTask, final_state, make_trainer, same

LIMIT = 150.0  # seconds: a hang fails


@pytest.mark.parametrize("stop", [1, 5, 8, 12])
def test_n_steps_are_k_steps_and_resumed_n_minus_k_steps_bit_for_bit(tmp_path, stop):
    make_trainer(tmp_path / "whole").fit()
    make_trainer(tmp_path / "parts", max_steps=stop).fit()
    resumed = make_trainer(tmp_path / "parts")
    resumed.resume()
    assert resumed.step == stop
    resumed.fit()
    same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def test_it_resumes_with_workers_and_accumulation_bit_for_bit(tmp_path):
    settings = {"accumulate": 2, "workers": 2}
    make_trainer(tmp_path / "whole", **settings).fit()
    make_trainer(tmp_path / "parts", max_steps=7, **settings).fit()
    resumed = make_trainer(tmp_path / "parts", **settings)
    resumed.resume()
    assert (resumed.epoch, resumed.step_in_epoch) == (1, 2)
    resumed.fit()
    same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, accumulate):
    """Losses that are means over other things than samples included; budgets are not."""
    settings = {
        "double": True,
        "dropout": 0.0,
        "budget": BudgetOptions(),
        "batch_size": 7,
        "max_steps": 4,
    }
    whole = make_trainer(tmp_path / "whole", **settings)
    parts = make_trainer(tmp_path / "parts", accumulate=accumulate, **settings)
    whole.fit()
    parts.fit()
    for (name, p), q in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-9, atol=1e-11, msg=name)
    assert parts.history[0]["train_losses"] == pytest.approx(whole.history[0]["train_losses"])
    with pytest.raises(ConfigError, match="a batch of 7 samples .* 1 processes × 8 micro-batches"):
        make_trainer(tmp_path / "more", accumulate=8, **settings)


def test_workers_and_a_second_run_change_nothing(tmp_path):
    make_trainer(tmp_path / "a").fit()
    make_trainer(tmp_path / "b", workers=2).fit()
    same(final_state(tmp_path / "a"), final_state(tmp_path / "b"))


def test_gradient_reaches_policy_and_model_with_their_own_optimisers(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3)
    part = adaptive_part(trainer.model)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.fit()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert any(".policy." in n for n in moved) and "head.weight" in moved
    assert not any(".twins." in n for n in moved)
    ours = {id(p) for o in trainer.optimizers.values() for p in o.parameters}
    assert ours == {id(p) for p in trainer.model.parameters() if p.requires_grad}
    assert not {id(p) for p in trainer.optimizers["main"].parameters} & {
        id(p) for p in part.policy.parameters()
    }


def test_the_temperature_falls_geometrically(tmp_path):
    trainer = make_trainer(tmp_path)
    values = []
    for step in range(trainer.total_steps):
        trainer.step = step
        values.append(trainer.temperature())
    ratios = [b / a for a, b in itertools.pairwise(values)]
    assert values[0] == 5.0 and values[-1] == pytest.approx(1.0)
    assert max(ratios) - min(ratios) < 1e-9


def test_best_is_the_best_epoch_and_last_the_last(tmp_path):
    trainer = make_trainer(tmp_path, task=ToyTask(scores=[10.0, 30.0, 20.0]))
    seen = []
    trainer.fit(lambda record: seen.append(record["best_score"]))
    assert trainer.best_epoch == 1 and seen == [10.0, 30.0, 30.0]
    best, _ = load_checkpoint(tmp_path / "BEST.safetensors")
    assert best["progress"]["best_epoch"] == 1 and best["progress"]["epoch"] == 2
    assert not torch.equal(
        best["model"]["head.weight"], final_state(tmp_path)["model"]["head.weight"]
    )
    record = trainer.history[0]
    assert record["train_decisions"]["count"] == 20
    assert len(record["train_decisions"]["share"]) == len(adaptive_part(trainer.model).live)
    assert set(record["train_losses"]) == {"answer", "marked", "target_rate"}


def test_every_epoch_visits_every_sample_once_in_an_order_of_its_own():
    order = BatchOrder(22, 4, seed=3)
    first, second = order.epoch(0), order.epoch(1)
    assert (
        order.steps == 5
        and len(set(functools.reduce(operator.iadd, first, []))) == 20
        and first != second
    )
    assert order.epoch(0) == first and order.epoch(0, skip=2) == first[2:]
    assert BatchOrder(3, 8, 0).batch_size == 3
    with pytest.raises(ConfigError, match="training set is empty"):
        BatchOrder(0, 4, 0)


def test_a_non_finite_loss_stops_the_run_and_keeps_the_batch(tmp_path):
    trainer = make_trainer(tmp_path, task=ToyTask(poison=2))
    with pytest.raises(AdaptiveError, match="loss answer is not finite at step 2") as error:
        trainer.fit()
    assert "non_finite_batch.safetensors" in str(error.value)
    batch, meta = load_checkpoint(tmp_path / "non_finite_batch.safetensors")
    assert meta["step"] == 2 and len(batch["samples"]) == 4 and "input_ids" in batch["inputs"]


@pytest.mark.parametrize("settings", [{"log_every": 1}, {"log_every": 50}, {"save_every": 3}])
def test_what_is_read_later_names_the_same_step_and_batch(tmp_path, settings):
    """As on a GPU, which is not asked in every step."""
    for name, at_once in (("now", True), ("later", False)):
        trainer = make_trainer(tmp_path / name, task=ToyTask(poison=2), **settings)
        trainer.finite.at_once = at_once
        with pytest.raises(AdaptiveError, match="loss answer is not finite at step 2; the batch"):
            trainer.fit()
        assert not (tmp_path / name / "BEST.safetensors").exists()
        last = tmp_path / name / "LAST.safetensors"
        assert not last.exists() or load_checkpoint(last)[0]["progress"]["step"] <= 2
    now, later = (
        load_checkpoint(tmp_path / name / "non_finite_batch.safetensors")[0]
        for name in ("now", "later")
    )
    assert now["samples"] == later["samples"]
    assert now["inputs"]["input_ids"].equal(later["inputs"]["input_ids"])


def test_later_reading_changes_nothing_in_a_run_without_fault(tmp_path):
    states = []
    for name, at_once in (("now", True), ("later", False)):
        trainer = make_trainer(tmp_path / name)
        trainer.finite.at_once = at_once
        trainer.fit()
        states.append(final_state(tmp_path / name))
    same(*states)


def test_resuming_another_strategy_or_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nothing to resume: .*LAST.safetensors does not exist"):
        make_trainer(tmp_path).resume()
    make_trainer(tmp_path, max_steps=1).fit()
    with pytest.raises(CheckpointError, match="strategy is 'SpotTune' in the file.*'BlockDrop'"):
        make_trainer(tmp_path, strategy="BlockDrop").resume()


def test_a_folder_with_a_run_is_overwritten_only_when_asked_and_then_wholly(tmp_path):
    first = make_trainer(tmp_path)
    first.begin(resume=False, overwrite=False)
    first.fit()
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(
        ConfigError, match="LAST.safetensors exists: add --resume to go on, --overwrite"
    ):
        make_trainer(tmp_path).begin(resume=False, overwrite=False)
    assert (tmp_path / "BEST.safetensors").exists()
    second = make_trainer(tmp_path, max_steps=1)
    second.begin(resume=False, overwrite=True)
    second.fit()
    assert {p.name for p in tmp_path.iterdir()} == {"LAST.safetensors", "log.log"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """What a run that nothing interrupted leaves in LAST."""
    folder = tmp_path_factory.mktemp("whole")
    make_trainer(folder).fit()
    return final_state(folder)


SCRIPT = """
import sys, time
from pathlib import Path
from tests.common.toy_task import make_trainer, ToyTask
class Slow(ToyTask):
    def read(self, indices, epoch):
        time.sleep(0.05)
        return super().read(indices, epoch)
trainer = make_trainer(Path(sys.argv[1]), task=Slow(), save_every=1)
try:
    trainer.fit()
except Exception as error:
    print(error); sys.exit(3)
"""


@pytest.mark.long
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, kill, whole):
    """In this process, whose random numbers are others than those of the process that ended."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    last = tmp_path / "killed" / "LAST.safetensors"
    deadline = time.time() + LIMIT
    while not last.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(kill)
    output = process.communicate(timeout=LIMIT)[0]
    if kill == signal.SIGTERM:
        assert process.returncode == 3 and "--resume" in output
    else:
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    stopped = final_state(tmp_path / "killed")["progress"]["step"]
    assert 0 < stopped < 15
    resumed = make_trainer(tmp_path / "killed", save_every=1)
    resumed.resume()
    assert resumed.step == stopped
    resumed.fit()
    same(whole, final_state(tmp_path / "killed"))


def test_history_is_json(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit()
    assert len(json.loads(json.dumps(trainer.history))) == 3


class Signalled(ToyTask):
    """Gets a signal twice, by itself and from its launcher, at some call of a method."""

    def __init__(self, method: str, call: int) -> None:
        super().__init__()
        self.left = {method: call}

    def signal(self, method: str) -> None:
        self.left[method] = self.left.get(method, 0) - 1
        if self.left[method] == 0:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    def read(self, indices, epoch):
        self.signal("read")
        return super().read(indices, epoch)

    def validate(self, model):
        self.signal("validate")
        return super().validate(model)


@pytest.mark.parametrize(
    ("method", "call", "steps"),
    [("read", 1, 0), ("read", 6, 5), ("read", 8, 7), ("validate", 1, 5), ("validate", 3, 15)],
)
def test_a_signal_saves_and_stops_wherever_the_run_is(tmp_path, method, call, steps, whole):
    with pytest.raises(StoppedError, match=f"at step {steps}; .* --resume"):
        make_trainer(tmp_path / "parts", task=Signalled(method, call)).fit()
    assert final_state(tmp_path / "parts")["progress"]["step"] == steps
    resumed = make_trainer(tmp_path / "parts")
    resumed.resume()
    resumed.fit()
    same(whole, final_state(tmp_path / "parts"))


def test_a_later_second_signal_acts_as_usual(monkeypatch):
    monkeypatch.setattr("common.training.stop_signal.REPEATS", -1.0)
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.received and not numbers
            signal.raise_signal(signal.SIGTERM)
            assert numbers == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_checkpoint_of_another_version_of_the_code_is_refused_by_that_name(tmp_path):
    make_trainer(tmp_path, max_steps=2).fit()
    state, meta = load_checkpoint(tmp_path / "LAST.safetensors")
    save_checkpoint(tmp_path / "LAST.safetensors", state, meta | {"checkpoint_version": 1})
    with pytest.raises(CheckpointError, match="another version of this code.*--overwrite"):
        make_trainer(tmp_path).resume()


def test_learning_rates_in_the_history_go_on_where_they_were(tmp_path):
    """`lr` of an epoch is that of the update after it, also in a resumed run."""
    make_trainer(tmp_path / "whole").fit()
    make_trainer(tmp_path / "parts", 7).fit()
    resumed = make_trainer(tmp_path / "parts")
    resumed.begin(resume=True, overwrite=False)
    resumed.fit()
    rates = [
        [epoch["lr"] for epoch in final_state(tmp_path / name)["progress"]["history"]]
        for name in ("whole", "parts")
    ]
    assert rates[0] == rates[1] and len(set(rates[0])) == 3
    plan = make_trainer(tmp_path / "other").optimizers["main"].schedule
    assert rates[0] == pytest.approx([1e-2 * plan.factor(5 * n) for n in (1, 2, 3)])


def test_model_and_policy_are_clipped_with_their_own_limits(tmp_path):
    trainer = make_trainer(tmp_path, 1, clip=3.0, policy_clip=0.25)
    limits = {}
    for name, optimizer in trainer.optimizers.items():

        def watched(limit, scaler=None, name=name, clip=optimizer.clip):
            limits[name] = limit
            return clip(limit, scaler)

        optimizer.clip = watched
    trainer.fit()
    assert limits == {"main": 3.0, "policy": 0.25}
    limits.clear()
    trainer = make_trainer(tmp_path / "off", 3, clip=0.0, policy_clip=0.0)
    before = [p.clone() for p in trainer.optimizers["main"].parameters]
    trainer.fit()
    after = trainer.optimizers["main"].parameters
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_the_noise_of_a_step_is_keyed_by_seed_step_and_samples(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, 3, accumulate=2)
    keys = []
    original = trainer.part.tell

    def watch(seed, step, samples, kinds):
        keys.append((seed, step, len(samples)))
        original(seed, step, samples, kinds)

    monkeypatch.setattr(trainer.part, "tell", watch)
    trainer.fit()
    assert [k for k in keys if k[0] == 5] == [(5, s, 2) for s in (0, 0, 1, 1, 2, 2)]
