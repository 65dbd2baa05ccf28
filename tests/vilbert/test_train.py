"""train_tasks.py on small data in the official formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.data.dataset_table import DATASETS
from common.data.vqa_metric import score
from common.training.checkpoint import load_checkpoint, load_meta
from common.training.optim import make_optimizer
from common.training.weights import load_weights
from tests.common.recording import recording
from tests.lxmert.runs import strict_json
from tests.vilbert.runs import (
    DROPOUT_RUN,
    LAYERS,
    MINIVAL,
    VAL,
    TaskFiles,
    refused,
    without,
    write_bert,
    write_task,
)
from vilbert.finetuning import EVALUATE, TRAIN, evaluate, train
from vilbert.recipe import optimizers_of
from vilbert.sizes import HOME
from vilbert.tasks import chosen_tasks
from vilbert.vqa_data import read_part, task_dataset

STRATEGIES: dict[str, tuple[str, ...]] = {
    "standard": (),
    "Frozen": (),
    "LastK": ("--trainable-layers", "last:2"),
    "FrozenLayers": ("--frozen-layers", "lang.1,3"),
    "SpotTune_Block": (),
    "SpotTune_Res": (),
    "SpotTune": (),
    "BlockDrop": (),
    "BlockReplace": (),
}
# A weight of every layer, in the order in which they run.
OF_LAYER = dict(
    zip(
        LAYERS,
        (
            "bert.encoder.layer.0.output.dense.weight",
            "bert.encoder.c_layer.0.biOutput.dense1.weight",
            "bert.encoder.v_layer.0.output.dense.weight",
            "bert.encoder.layer.1.output.dense.weight",
            "bert.encoder.c_layer.1.biOutput.dense1.weight",
            "bert.encoder.v_layer.1.output.dense.weight",
            "bert.encoder.layer.2.output.dense.weight",
        ),
        strict=True,
    )
)
ORIGINAL = """
    --bert_model bert-base-uncased
    --from_pretrained save/bert_base_6_layer_6_connect_freeze_0/pytorch_model_8.bin
    --config_file config/bert_base_6layer_6conect.json --learning_rate 4e-5 --num_workers 16
    --tasks 1 --save_name pretrained --num_train_epochs 20.0 --do_lower_case True
    --in_memory True --seed 3 --loss_scale 0 --use_chunk 0 --warmup_proportion 0.1
    --gradient_accumulation_steps 2 --evaluation_interval 1 --optimizer BertAdam
    --lr_scheduler mannul --freeze -1
"""
WORDS = "bert.embeddings.word_embeddings.weight"


def last(out: Path) -> dict[str, Tensor]:
    return load_checkpoint(out / "LAST.safetensors")[0]["model"]


def changed(out: Path, files: TaskFiles) -> set[str]:
    """The pretrained tensors that are others after training."""
    state = last(out)
    started = load_weights(files.pretrained)
    return {n for n, x in started.items() if n in state and not torch.equal(state[n], x)}


@pytest.fixture(scope="module")
def logged(files, tmp_path_factory) -> Path:
    """A run with plots and curves, named as the original names it."""
    out = tmp_path_factory.mktemp("save")
    words = files.run("unused", *DROPOUT_RUN, "--output_dir", str(out), "--save_name", "pretrained")
    quiet = {"--no-plots", "--no-tensorboard"}
    assert train([word for word in without(words, "--output") if word not in quiet]) == 0
    return out / "VQA_tiny-pretrained"


def test_a_run_leaves_its_files_where_the_original_puts_them(logged):
    names = {str(path.relative_to(logged)) for path in logged.rglob("*") if path.is_file()}
    assert {
        "BEST.safetensors",
        "LAST.safetensors",
        "pytorch_model_1.safetensors",
        "result.json",
        "report.html",
        "log.log",
        "vocab.txt",
        "answers.json",
        "visualizations/decisions.png",
        "visualizations/training.png",
        "visualizations/SpotTune_Block_heldout_epoch_1.png",
    } <= names
    assert any(name.startswith("tensorboard/events.") for name in names)
    assert "pytorch_model_0.safetensors" not in names, "the newest numbered one is kept"
    log = (logged / "log.log").read_text()
    assert "Epoch 1: Train " in log and "Epoch 1: Valid " in log
    assert "vqa: 48 training, " in log


def test_the_result_says_what_was_trained(logged):
    result = strict_json(logged / "result.json")
    fixed = {
        "backbone": "vilbert",
        "task": "vqa",
        "dataset": "vqa",
        "strategy": "SpotTune_Block",
        "policy": "small",
        "size": "small",
        "seed": 9595,
        "precision": "fp32",
        "name": "pretrained",
        "policy_eval": "argmax",
        "processes": 1,
    }
    assert {key: result[key] for key in fixed} == fixed
    assert result["command"].startswith("python train_tasks.py --tasks_file ")
    assert result["accuracy"]["val"]["count"] == MINIVAL
    assert result["accuracy"]["train"]["count"] == 48
    assert result["accuracy"]["val"].keys() == {"overall", "yes/no", "number", "other", "count"}
    assert result["generalization_error"] == pytest.approx(
        result["accuracy"]["train"]["overall"] - result["accuracy"]["val"]["overall"]
    )
    assert result["decisions"]["names"] == LAYERS
    assert result["decisions"]["live"] == [True] * 7 and result["decisions"]["count"] == MINIVAL
    assert result["selection"].startswith("10 % of the training images held out (")


def test_the_best_epoch_is_that_of_the_held_out_images(files, tmp_path):
    """And it is the one that is reported, however the last one is."""
    run = files.run(tmp_path, "--epochs", "5", "--learning_rate", "3e-2", "--holdout", "0.4")
    assert train(run) == 0
    result = strict_json(tmp_path / "result.json")
    scores = [epoch["heldout_score"] for epoch in result["epochs"]]
    assert len(set(scores)) > 1 and result["best_epoch"] == scores.index(max(scores)) < 4
    (task,) = chosen_tasks("1", files.tasks)
    kind = task_dataset(task, "vqa", None).kind
    examples = read_part(files.questions, kind.splits["minival"])
    found = {}
    for name in ("BEST", "LAST"):
        out = tmp_path / name
        assert evaluate(files.test(tmp_path / name, out)) == 0
        rows = strict_json(out / "minival_result.json")
        found[name] = score({row["question_id"]: row["answer"] for row in rows}, examples)
    reported = {k: v for k, v in result["accuracy"]["val"].items() if k != "count"}
    assert found["BEST"] == reported != found["LAST"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_what_it_should(files, tmp_path, strategy):
    assert train(files.run(tmp_path, "--strategy", strategy, *STRATEGIES[strategy])) == 0
    result = strict_json(tmp_path / "result.json")
    frozen = {
        "Frozen": set(LAYERS),
        "LastK": set(LAYERS[:-2]),
        "FrozenLayers": {"lang.1", "vision.1"},
    }.get(strategy, set())
    different = changed(tmp_path, files)
    assert {layer for layer, name in OF_LAYER.items() if name not in different} == frozen
    # What surrounds the layers is trained by every strategy.
    assert WORDS in different and "bert.t_pooler.dense.weight" in different
    decisions = {"SpotTune_Block": 7, "BlockDrop": 7, "BlockReplace": 7}.get(strategy)
    found = result["decisions"]
    if decisions is not None:
        assert found["names"] == LAYERS and len(found["share"]) == decisions
    elif strategy.startswith("SpotTune"):
        assert set(found["layers"]) == set(LAYERS) and len(found["share"]) > 7
    else:
        assert found is None and result["policy"] is None
    if strategy.startswith("SpotTune"):
        started = load_weights(files.pretrained)
        twins = {n: x for n, x in last(tmp_path).items() if ".adaptive.twins." in n}
        dense = [x for n, x in twins.items() if n.endswith(".output.dense.weight")]
        assert dense and all(
            any(x.shape == y.shape and torch.equal(x, y) for y in started.values()) for x in dense
        ), "a twin is not the pretrained weight"


@pytest.mark.parametrize("strategy", ["standard", "SpotTune_Block"])
def test_freeze_keeps_embeddings_and_the_first_text_layers_as_they_were(files, tmp_path, strategy):
    assert train(files.run(tmp_path, "--freeze", "1", "--strategy", strategy)) == 0
    different = changed(tmp_path, files)
    kept = ("bert.embeddings.", "bert.encoder.layer.0.", "bert.encoder.layer.1.")
    assert not [name for name in different if name.startswith(kept)]
    assert OF_LAYER["lang.3"] in different and OF_LAYER["vision.1"] in different
    assert load_meta(tmp_path / "BEST.safetensors")["freeze"] == 1


def test_the_single_stream_baseline_starts_from_a_bert(own_files, tmp_path, capsys):
    write_bert(own_files)
    run = ["--baseline", "--from_pretrained", str(own_files.bert), "--strategy", "SpotTune_Block"]
    assert train(own_files.run(tmp_path / "run", *run)) == 0
    assert "tensors of the text half loaded" in capsys.readouterr().out
    result = strict_json(tmp_path / "run" / "result.json")
    assert result["decisions"]["names"] == ["layer.1", "layer.2", "layer.3"]
    assert load_meta(tmp_path / "run" / "BEST.safetensors")["baseline"] is True
    out = tmp_path / "answers"
    assert evaluate(own_files.test(tmp_path / "run" / "BEST", out)) == 0
    assert f"overall {result['accuracy']['val']['overall']:.2f}" in capsys.readouterr().out


def test_the_published_policy_is_a_small_model_of_the_family(files, tmp_path):
    run = ["--strategy", "SpotTune_Block", "--policy", "published", "--policy_layers", "1,1,1"]
    assert train(files.run(tmp_path, *run)) == 0
    result = strict_json(tmp_path / "result.json")
    assert result["policy"] == "published" and result["parameters"]["policy"] > 1000
    assert load_meta(tmp_path / "BEST.safetensors")["strategy_flags"]["policy_layers"] == [1, 1, 1]


def test_the_random_policy_decides_by_chance(files, tmp_path):
    run = ["--strategy", "BlockDrop", "--policy", "random:0.5"]
    assert train(files.run(tmp_path, *run)) == 0
    result = strict_json(tmp_path / "result.json")
    assert result["policy"] == "random:0.5" and result["parameters"]["policy"] == 0
    assert 0.3 < result["epochs"][0]["train_decisions"]["share"][0] < 0.7
    assert 0.25 < result["decisions"]["mean_live"] < 0.75


def test_the_rate_of_what_is_not_bert_s_is_raised_with_vision_scratch(files, tmp_path):
    for name, flags in (("with", ["--vision_scratch"]), ("without", [])):
        assert train(files.run(tmp_path / name, "--learning_rate", "4e-5", *flags)) == 0
    rates = {
        name: load_checkpoint(tmp_path / name / "LAST.safetensors")[0]["optimizers"]["main"]
        for name in ("with", "without")
    }
    # Small models have the rate of all for their classifier.
    assert set(rates["without"]["base_lrs"]) == {4e-5}
    assert set(rates["with"]["base_lrs"]) == {4e-5, 1e-4}


def test_the_rate_of_bert_adam_falls_after_epochs_as_in_the_original(files, tmp_path):
    """Constant after warm-up, a tenth from epoch 12 on, and another from 16 on."""
    run = ["--optimizer", "BertAdam", "--epochs", "18", "--questions", "16", "--freeze", "2"]
    assert train(files.run(tmp_path, *run, "--warmup_proportion", "0.1")) == 0
    rates = [epoch["lr"] for epoch in strict_json(tmp_path / "result.json")["epochs"]]
    # An epoch's record has the rate of the update that follows it.
    assert rates == pytest.approx([5e-4] + [1e-3] * 10 + [1e-4] * 4 + [1e-5] * 3)


@pytest.mark.parametrize(
    ("optimizer", "size", "kind", "options"),
    [
        ("BertAdam", "base", "steps", {"max_grad_norm": 1.0}),
        ("bertadam", "small", "steps", {"max_grad_norm": 1.0}),
        ("Adamax", "base", "steps", {}),
        ("adamw", "base", "steps", {}),
        ("adamw", "small", "linear", {}),
    ],
)
def test_every_optimiser_of_the_original_has_its_schedule(
    files, tmp_path, monkeypatch, optimizer, size, kind, options
):
    made = []

    def spy(*arguments, **settings):
        made.append(settings)
        return make_optimizer(*arguments, **settings)

    monkeypatch.setattr("vilbert.recipe.make_optimizer", spy)
    monkeypatch.setattr("vilbert.finetuning.optimizers_of", lambda m, _: optimizers_of(m, size))
    assert train(files.run(tmp_path, "--optimizer", optimizer, "--max-steps", "1")) == 0
    (found,) = made
    assert found.get("schedule", "linear") == kind
    assert {k: found[k] for k in found if k == "max_grad_norm"} == options


def test_the_task_follows_the_data(own_files, tmp_path, monkeypatch, capsys):
    """`--dataset vqa_cp` alone is the task VQA-CP; with another task it is refused."""
    options = TRAIN.parse(["--dataset", "vqa_cp", "--gpus", "cpu"])
    assert options.model.task.name == "VQA-CP" and options.data.dataset == "vqa_cp"
    assert TRAIN.parse(["--dataset", "easy_vqa_cp"]).model.task.name == "VQA"
    shown = refused(capsys, ["--dataset", "vqa_cp", "--tasks", "1"])
    assert "those are the data of task VQA-CP, not of VQA; leave --tasks out" in shown
    monkeypatch.setattr("vilbert.vqa_data.HOME", tmp_path)
    for task, split in (("1", "minival"), ("VQA-CP", DATASETS["easy_vqa_cp"].valid)):
        parsed = EVALUATE.parse(["--tasks", task, "--from_pretrained", "x/BEST"])
        assert parsed.test == split
    shown = refused(capsys, ["--from_pretrained", "x", "--split", "trainval"], evaluate)
    assert "--split trainval: these samples are trained on" in shown
    # A file of another task changes neither data nor recipe of this one.
    (tmp_path / "data" / "VQA").mkdir(parents=True)
    (tmp_path / "data" / "VQA" / "vqacp_v2_train_questions.json").write_text("{}")
    found = TRAIN.parse(["--tasks", "1", "--save_name", "x"])
    assert found.run.folder.name == "VQA_easy_vqa_small-x" and "lr" not in found.changes


def test_the_command_of_the_original_s_readme_is_understood(monkeypatch):
    """And the other flags of the original."""
    monkeypatch.chdir(HOME)
    options = TRAIN.parse(ORIGINAL.split())
    assert options.run.folder == Path("save/VQA_bert_base_6layer_6conect-pretrained")
    assert options.name == "pretrained" and options.run.seed == 3
    how = TRAIN.finetuning(options, "base")
    assert (how.recipe.lr, how.recipe.epochs, how.recipe.optim) == (4e-5, 20, "bert")
    assert (how.loop.workers, how.loop.accumulate, how.recipe.warmup) == (16, 2, 0.1)
    assert options.model.from_pretrained.endswith("pytorch_model_8.bin")
    assert TRAIN.size(options.model, "vqa") == "base"


@pytest.mark.parametrize("flag", ["--local_rank=0", "--local-rank=0"])
def test_the_flags_of_torch_distributed_launch_are_taken_in_one_process(files, tmp_path, flag):
    run = files.run(tmp_path, "--max-steps", "1", flag, "--no_cuda", "--num_workers", "1")
    assert train(run) == 0


def test_a_run_in_half_precision_computes_numbers(files, tmp_path):
    assert train(files.run(tmp_path, "--strategy", "SpotTune", "--precision", "bf16")) == 0
    result = strict_json(tmp_path / "result.json")
    assert result["precision"] == "bf16" and 0 < result["epochs"][0]["train_loss"] < 50


def test_the_recipe_of_a_task_s_own_data_is_that_of_the_task_file(own_files, tmp_path):
    write_task(own_files.tasks, own_files, batch_size=24, eval_batch_size=7, lr=0.002, num_epoch=2)
    run = own_files.run(tmp_path / "run")
    assert train(without(run, "--batchSize", "--epochs", "--lr")) == 0
    recipe = strict_json(tmp_path / "run" / "result.json")["recipe"]
    assert {key: recipe[key] for key in ("batch_size", "eval_batch_size", "lr", "epochs")} == {
        "batch_size": 24,
        "eval_batch_size": 7,
        "lr": 0.002,
        "epochs": 2,
    }


def test_texts_and_regions_are_cut_at_the_lengths_of_the_task_file(own_files, tmp_path):
    """And a checkpoint remembers them, so that testing cuts them at the same places."""
    write_task(own_files.tasks, own_files, max_seq_length=6, max_region_num=3)
    assert train(own_files.run(tmp_path / "run")) == 0
    meta = load_meta(tmp_path / "run" / "BEST.safetensors")
    assert meta["limits"] == {"tokens": 6, "regions": 3}


def test_without_data_of_the_task_the_small_model_is_finetuned_on_easy_vqa(
    easy_vqa_root, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("common.data.datasets.repository_root", lambda: easy_vqa_root)
    monkeypatch.setattr("vilbert.options.HOME", tmp_path)
    monkeypatch.setattr("vilbert.vqa_data.HOME", tmp_path)
    out = str(tmp_path / "save")
    run = ["--questions", "64", "--epochs", "1", "--gpus", "cpu", "--quiet", "--no-plots"]
    run += ["--no-tensorboard", "--strategy", "SpotTune_Block", "--output_dir", out]
    assert train([*run, "--save_name", "first"]) == 0
    shown = capsys.readouterr().out
    assert (
        f"No files of VQA in {tmp_path / 'data' / 'VQA'}: using easy_vqa. It needs there: " in shown
    )
    small = HOME / "pretrained" / "easy_vqa_small" / "model.safetensors"
    assert f"{small}: " in shown and "classifier with 13 answers" in shown
    folder = tmp_path / "save" / "VQA_easy_vqa_small-first"
    result = strict_json(folder / "result.json")
    assert result["dataset"] == "easy_vqa" and result["size"] == "small"
    assert result["accuracy"]["val"]["overall"] > result["baselines"]["majority"]["overall"]
    assert evaluate(["--save_name", "first", "--output_dir", out, "--gpus", "cpu", "--quiet"]) == 0
    assert f"overall {result['accuracy']['val']['overall']:.2f}" in capsys.readouterr().out
    assert (folder / "minival_result.json").is_file()


def test_training_goes_on_from_a_finetuned_model(files, whole, tmp_path):
    """--load: every weight, the strategy and the sizes are the file's, its dropout if wanted."""
    run = files.run(tmp_path, "--load", str(whole / "BEST"), "--learning_rate", "0")
    run += ["--dropout", "0.3"]
    assert train([*without(run, "--from_pretrained"), "--policy-lr", "0"]) == 0
    saved = load_checkpoint(whole / "BEST.safetensors")[0]["model"]
    state = last(tmp_path)
    assert saved.keys() == state.keys()
    assert all(torch.equal(x, state[name]) for name, x in saved.items())
    assert strict_json(tmp_path / "result.json")["strategy"] == "SpotTune_Block"
    rates = {
        folder: load_meta(folder / "BEST.safetensors")["config"]["v_hidden_dropout_prob"]
        for folder in (whole, tmp_path)
    }
    assert rates == {whole: 0.2, tmp_path: 0.3}


def test_the_reported_questions_are_the_last_ones_of_val(files):
    (task,) = chosen_tasks("1", files.tasks)
    kind = task_dataset(task, "vqa", None).kind
    parts = {
        name: [e.question_id for e in read_part(files.questions, kind.splits[name])]
        for name in ("nominival", "minival", "val")
    }
    assert parts["nominival"] + parts["minival"] == parts["val"] == sorted(parts["val"])
    assert len(parts["minival"]) == MINIVAL and len(parts["val"]) == 4 * len(VAL)


def test_a_run_whose_passes_are_recorded_gives_the_same(files, tmp_path, monkeypatch):
    """But for rounding, which depends on where tensors lie in memory."""
    run = [*DROPOUT_RUN, "--executor", "grouped"]
    assert train(files.run(tmp_path / "run", *run)) == 0
    recorder = recording(monkeypatch)
    assert train(files.run(tmp_path / "recorded", *run)) == 0
    assert recorder.repeats == 6
    first, second = (
        strict_json(tmp_path / name / "result.json")["epochs"] for name in ("run", "recorded")
    )
    for one, other in zip(first, second, strict=True):
        assert other["train_losses"] == pytest.approx(one["train_losses"], rel=1e-5)
        assert other["policy"]["p"] == pytest.approx(one["policy"]["p"], rel=1e-5)
