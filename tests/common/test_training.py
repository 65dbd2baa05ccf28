"""The training loop: resuming bit for bit, best epoch, saves, non-finite losses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.common.tiny_models import adapted, single_inputs

from common.adapt import adaptive_part, parameter_groups
from common.budget import BudgetOptions
from common.checkpoint import load_checkpoint
from common.errors import AdaptiveError, CheckpointError, ConfigError
from common.optim import make_optimizer
from common.runtime import make_runtime, seed_everything
from common.task import StepOutput, TaskBatch, Validation
from common.tracking import Tracker
from common.training import BatchOrder, LoopOptions, Trainer

SAMPLES = 22


class ToyTask:
    """Classify token sequences by their first token's parity; reads are deterministic."""

    def __init__(self, scores: list[float] | None = None, poison: int | None = None) -> None:
        self.inputs = single_inputs(SAMPLES)
        self.labels = self.inputs["input_ids"][:, 0] % 5
        self.scores, self.poison, self.steps = scores, poison, 0

    def __len__(self) -> int:
        return SAMPLES

    def read(self, indices, epoch):
        return TaskBatch(list(indices), {k: x[indices] for k, x in self.inputs.items()},
                         {"label": self.labels[indices]},
                         ["even" if i % 2 else "odd" for i in indices])

    def step(self, model, batch):
        logits = model(**batch.inputs)
        loss = torch.nn.functional.cross_entropy(logits, batch.labels["label"])
        if self.steps == self.poison:
            loss = loss * float("nan")
        self.steps += 1
        right = (logits.argmax(1) == batch.labels["label"]).sum()
        return StepOutput({"answer": loss}, float(right), len(batch.samples))

    def validate(self, model):
        model.eval()
        with torch.no_grad():
            logits = model(**self.inputs)
        score = 100 * (logits.argmax(1) == self.labels).float().mean().item()
        return Validation(self.scores.pop(0) if self.scores else score, {"heldout": score})


def make_trainer(folder: Path, max_steps: int = 0, task: ToyTask | None = None,
                 strategy: str = "SpotTune", **options) -> Trainer:
    seed_everything(1)
    model = adapted("single", strategy, dropout=0.2).float()
    settings = {"epochs": 3, "batch_size": 4, "seed": 5, "max_steps": max_steps,
                "progress": False, "temperature": 5.0, "temperature_end": 1.0,
                "budget": BudgetOptions(target_rate=0.5)} | options
    task = task or ToyTask()
    steps = BatchOrder(SAMPLES, settings["batch_size"], 0).steps * settings["epochs"]
    groups = parameter_groups(model)
    main = make_optimizer("bert", groups["trainable"], 1e-2, steps)
    policy = make_optimizer("adamw", groups["policy"], 1e-2, steps) if groups["policy"] else None
    return Trainer(model, task, main, policy, make_runtime("cpu"), LoopOptions(**settings), folder,
                   Tracker(folder, tensorboard=False), {"strategy": strategy})


def final_state(folder: Path) -> dict:
    state, _ = load_checkpoint(folder / "LAST.safetensors")
    return state


def same(a, b, path="") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if key not in ("seconds", "step_seconds", "lr"):
                same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{path}[{i}]")
    elif hasattr(a, "shape"):
        assert (a == b).all(), path
    else:
        assert a == b, path


@pytest.mark.parametrize("stop", [1, 5, 8, 12])
def test_n_steps_are_k_steps_and_resumed_n_minus_k_steps_bit_for_bit(tmp_path, stop):
    make_trainer(tmp_path / "whole").fit()
    make_trainer(tmp_path / "parts", max_steps=stop).fit()
    resumed = make_trainer(tmp_path / "parts")
    resumed.resume()
    assert resumed.step == stop
    resumed.fit()
    same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


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
        id(p) for p in part.policy.parameters()}


def test_the_temperature_falls_geometrically(tmp_path):
    trainer = make_trainer(tmp_path)
    values = []
    for step in range(trainer.total_steps):
        trainer.step = step
        values.append(trainer.temperature())
    ratios = [b / a for a, b in zip(values, values[1:], strict=False)]
    assert values[0] == 5.0 and values[-1] == pytest.approx(1.0)
    assert max(ratios) - min(ratios) < 1e-9


def test_best_is_the_best_epoch_and_last_the_last(tmp_path):
    trainer = make_trainer(tmp_path, task=ToyTask(scores=[10.0, 30.0, 20.0]))
    seen = []
    trainer.fit(lambda record: seen.append(record.values["best_score"]))
    assert trainer.best_epoch == 1 and seen == [10.0, 30.0, 30.0]
    best, _ = load_checkpoint(tmp_path / "BEST.safetensors")
    assert best["progress"]["best_epoch"] == 1 and best["progress"]["epoch"] == 2
    assert not torch.equal(best["model"]["head.weight"],
                           final_state(tmp_path)["model"]["head.weight"])
    record = trainer.history[0]
    assert record["train_decisions"]["count"] == 20
    assert len(record["train_decisions"]["share"]) == len(adaptive_part(trainer.model).live)
    assert set(record["train_losses"]) == {"answer", "target_rate"}


def test_every_epoch_visits_every_sample_once_in_an_order_of_its_own():
    order = BatchOrder(22, 4, seed=3)
    first, second = order.epoch(0), order.epoch(1)
    assert order.steps == 5 and len(set(sum(first, []))) == 20 and first != second
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
    with pytest.raises(ConfigError, match="LAST.safetensors exists: add --resume to go on, "
                                          "--overwrite"):
        make_trainer(tmp_path).begin(resume=False, overwrite=False)
    assert (tmp_path / "BEST.safetensors").exists()
    second = make_trainer(tmp_path, max_steps=1)
    second.begin(resume=False, overwrite=True)
    second.fit()
    assert {p.name for p in tmp_path.iterdir()} == {"LAST.safetensors", "log.log"}


SCRIPT = """
import sys, time
from pathlib import Path
from tests.common.test_training import make_trainer, ToyTask
class Slow(ToyTask):
    def read(self, indices, epoch):
        time.sleep(0.05)
        return super().read(indices, epoch)
trainer = make_trainer(Path(sys.argv[1]), task=Slow(), save_every=1)
if "--resume" in sys.argv:
    trainer.resume()
try:
    trainer.fit()
except Exception as error:
    print(error); sys.exit(3)
"""


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, kill):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    last = tmp_path / "killed" / "LAST.safetensors"
    deadline = time.time() + 60
    while not last.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(kill)
    output = process.communicate(timeout=60)[0]
    if kill == signal.SIGTERM:
        assert process.returncode == 3 and "--resume" in output
    else:
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    stopped = final_state(tmp_path / "killed")["progress"]["step"]
    assert 0 < stopped < 15
    subprocess.run([*command, "--resume"], env=environment, check=True, timeout=120)
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "whole")], env=environment,
                   check=True, timeout=120)
    same(final_state(tmp_path / "whole"), final_state(tmp_path / "killed"))


def test_history_is_json(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit()
    assert len(json.loads(json.dumps(trainer.history))) == 3
