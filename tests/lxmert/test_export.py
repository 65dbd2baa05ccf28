"""Exported runs: the plain model answers as the global evaluation of the adaptive one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LxmertForPreTraining, LxmertForQuestionAnswering

from common import export
from common.adapt.adapting import adaptive_part
from common.data.datasets import load_split, open_features, resolve_dataset
from common.data.vqa_dataset import VQADataset
from common.files import repository_root
from common.runs.opened_run import open_run
from common.training.checkpoint import load_checkpoint, load_meta
from lxrt.finetuning import main
from lxrt.loading import load_lxmert_qa
from lxrt.modeling import VQAModel
from lxrt.sizes import LxmertConfig
from tests.common.exports import exported, logits, majority, refused
from tests.lxmert.runs import score_of_predictions, small_run, strict_json

MERGED = ("SpotTune", "BlockDrop")  # all of them, on every family: adapt/test_merge.py
MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def runs(vqa_data: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Trains a run when it is first asked for; its weights move far from the twins'."""
    made: dict[tuple[str, ...], Path] = {}

    def make(strategy: str, *flags: str) -> Path:
        key = (strategy, *flags)
        if key not in made:
            out = tmp_path_factory.mktemp(strategy)
            # Its decisions are neither all 0 nor all 1 here.
            published = (
                ["--policy-training", "published"] if strategy.startswith("SpotTune") else []
            )
            assert (
                main(
                    [
                        *small_run(vqa_data, pretrained),
                        "--lr",
                        "0.0005",
                        "--strategy",
                        strategy,
                        *published,
                        *flags,
                        "--output",
                        str(out),
                    ]
                )
                == 0
            )
            made[key] = out
        return made[key]

    return make


def minival(data: Path, count: int = 24) -> VQADataset:
    dataset = resolve_dataset("vqa", data_root=data)
    return VQADataset(
        load_split(dataset, "minival")[:count],
        open_features(dataset, "minival"),
        dataset.vocabulary(),
    )


def plain(out: Path) -> VQAModel:
    """The exported model, built from nothing but its own file."""
    state, meta = load_checkpoint(out / "model.safetensors")
    model = VQAModel(LxmertConfig.from_dict(meta["config"]))
    model.load_state_dict(state["model"], strict=True)
    return model


@pytest.mark.parametrize("strategy", MERGED)
def test_the_exported_model_gives_the_logits_of_the_global_evaluation(
    runs, vqa_data, tmp_path, strategy
):
    out = exported(runs(strategy), tmp_path / "out")
    run, data = open_run(runs(strategy)), minival(vqa_data)
    decisions = majority(run)
    record = strict_json(out / "export.json")
    assert record["decisions"]["global"] == decisions.tolist()
    assert record["decisions"]["from"] == "64 training questions"
    assert 0 < decisions[run.adaptive.live].mean() < 1
    run.adaptive.options.policy_eval = "global"
    run.adaptive.global_decisions.copy_(decisions)
    model = plain(out)
    assert adaptive_part(model) is None
    expected = logits(run.model, run, data)
    torch.testing.assert_close(logits(model, run, data), expected, rtol=0, atol=1e-11)
    run.adaptive.global_decisions.fill_(1.0)
    assert (logits(run.model, run, data) - expected).abs().max() > 1e-3
    # `transformers` in float64 as well, on the same batch.
    hf = LxmertForQuestionAnswering.from_pretrained(out / "transformers").double().eval()
    inputs = run.make_inputs(data.read(range(len(data))))
    with torch.no_grad():
        found = hf(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["input_mask"],
            visual_feats=inputs["features"].double(),
            visual_pos=inputs["boxes"].double(),
            visual_attention_mask=inputs["region_mask"],
        )
    torch.testing.assert_close(found.question_answering_score, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("strategy", MERGED)
def test_testing_the_export_gives_the_accuracy_of_the_global_evaluation(
    runs, vqa_data, tmp_path, strategy, capsys
):
    """A run evaluated globally keeps its decisions: no data is needed, and all answers agree."""
    run = runs(strategy, "--policy-eval", "global")
    out = exported(run, tmp_path / "out", "--data", str(tmp_path / "no data"))
    shown = capsys.readouterr().out
    assert "from BEST.safetensors)" in shown and f"{out}/model --test minival" in shown
    result = strict_json(run / "result.json")
    predictions = []
    for model in (out / "model", out / "transformers"):
        assert (
            main(
                [
                    "--dataset",
                    "vqa",
                    "--data",
                    str(vqa_data),
                    "--gpus",
                    "cpu",
                    "--quiet",
                    "--test",
                    "minival",
                    "--load",
                    str(model),
                    "--output",
                    str(tmp_path / "test"),
                ]
            )
            == 0
        )
        assert "minival of vqa, standard: overall" in capsys.readouterr().out
        file = tmp_path / "test" / "minival_predict.json"
        assert score_of_predictions(file, vqa_data) == pytest.approx(
            {k: v for k, v in result["accuracy"]["val"].items() if k != "count"}
        )
        predictions.append(strict_json(file))
    assert predictions[0] == predictions[1]
    assert len({row["answer"] for row in predictions[0]}) > 1


def test_transformers_alone_answers_as_we_do(runs, vqa_data, tmp_path):
    """Tokenizer, model and answer names from the folder, nothing of ours."""
    out = exported(runs("SpotTune_Block"), tmp_path / "out", "--format", "transformers")
    assert not (out / "model.safetensors").exists()
    tokenizer = AutoTokenizer.from_pretrained(out / "transformers")
    model = LxmertForQuestionAnswering.from_pretrained(out / "transformers").eval()
    data = minival(vqa_data)
    batch = data.read(range(len(data)))
    with torch.no_grad():
        scores = model(
            **tokenizer(batch.questions, padding=True, truncation=True, return_tensors="pt"),
            visual_feats=batch.features,
            visual_pos=batch.boxes,
            visual_attention_mask=batch.region_mask.long(),
        ).question_answering_score
    answers = [model.config.id2label[int(row)] for row in scores.argmax(1)]
    assert (
        main(
            [
                "--dataset",
                "vqa",
                "--data",
                str(vqa_data),
                "--gpus",
                "cpu",
                "--quiet",
                "--test",
                "minival",
                "--load",
                str(out / "transformers"),
                "--output",
                str(tmp_path),
            ]
        )
        == 0
    )
    ours = {
        row["question_id"]: row["answer"] for row in strict_json(tmp_path / "minival_predict.json")
    }
    assert answers == [ours[question] for question in batch.question_ids]
    assert len(set(answers)) > 1


def test_the_k_most_used_layers_make_a_model_of_k_layers(runs, tmp_path, capsys):
    out = exported(runs("BlockDrop"), tmp_path / "out", "--global-k", "4")
    shown = capsys.readouterr().out
    record = strict_json(out / "export.json")
    share, chosen = (torch.tensor(record["decisions"][key]) for key in ("share", "global"))
    assert chosen.sum() == 4 and share[chosen == 1].min() >= share[chosen == 0].max()
    assert sum(record["layers"].values()) == 4 and len(record["merged"]["dropped"]) == 2
    config = load_meta(out / "model.safetensors")["config"]
    assert config["l_layers"] + config["x_layers"] + config["r_layers"] == 4
    assert "4 of 6 decisions kept, 2 dropped (the 4 most used" in shown
    assert "4 layers (" in shown and "dropped: " in shown


def test_global_k_computes_anew_even_if_the_run_has_decisions(runs, tmp_path):
    run = runs("BlockDrop", "--policy-eval", "global")
    out = exported(run, tmp_path / "out", "--global-k", "5", "--format", "ours")
    record = strict_json(out / "export.json")["decisions"]
    assert record["from"] == "64 training questions" and sum(record["global"]) == 5
    assert not all(share in (0.0, 1.0) for share in record["share"]) or record["global_k"] == 5


@pytest.mark.parametrize(
    ("strategy", "flags"), [("standard", ()), ("FrozenLayers", ("--frozen-layers", "1"))]
)
def test_runs_that_decide_nothing_export_their_weights(runs, tmp_path, strategy, flags, capsys):
    run = runs(strategy, *flags)
    out = exported(run, tmp_path / "out")
    assert "nothing was decided" in capsys.readouterr().out
    best, state = (
        load_checkpoint(file)[0]["model"]
        for file in (run / "BEST.safetensors", out / "model.safetensors")
    )
    assert best.keys() == state.keys()
    assert all(torch.equal(state[name], x) for name, x in best.items())
    meta = load_meta(out / "model.safetensors")
    assert meta["strategy"] == meta["strategy_flags"]["strategy"] == "standard"
    assert (out / "answers.json").read_text() == (run / "answers.json").read_text()
    assert (out / "vocab.txt").read_text() == (run / "vocab.txt").read_text()
    hf = LxmertForQuestionAnswering.from_pretrained(out / "transformers").state_dict()
    assert torch.equal(hf["answer_head.logit_fc.3.bias"], best["logit_fc.3.bias"])


def test_block_replace_is_refused_where_a_linear_map_is_chosen(runs, tmp_path, capsys):
    run, out = runs("BlockReplace"), tmp_path / "out"
    shown = refused(capsys, "--run", str(run), "--out", str(out), "--global-k", "4")
    assert "linear map at 2 of 6 layers" in shown and "--global-k 6" in shown
    assert not list(tmp_path.iterdir())
    exported(run, out, "--global-k", "6")
    assert sum(strict_json(out / "export.json")["layers"].values()) == 6


def test_a_pretraining_snapshot_becomes_a_folder_of_transformers(
    pretrained, answers, tmp_path, capsys
):
    out = exported(pretrained, tmp_path / "out")
    assert "LxmertForPreTraining.from_pretrained" in capsys.readouterr().out
    assert not (out / "model.safetensors").exists()  # the snapshot is one already
    hf = LxmertForPreTraining.from_pretrained(out / "transformers")
    weights = load_checkpoint(f"{pretrained}_LXRT.safetensors")[0]["model"]
    state = hf.state_dict()
    assert all(
        torch.equal(state[name.replace("bert.", "lxmert.", 1)], x) for name, x in weights.items()
    )
    config = LxmertConfig.from_dict(load_meta(f"{pretrained}_LXRT.safetensors")["config"])
    models = [VQAModel(config) for _ in range(2)]
    for model, name in zip(models, (pretrained, out / "transformers"), strict=True):
        load_lxmert_qa(model, name, answers, tmp_path, say=lambda line: None)
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(x, other[name]) for name, x in one.items())
    assert "can be exported as transformers only" in refused(
        capsys, "--run", str(pretrained), "--out", str(tmp_path / "no"), "--format", "ours"
    )


def test_only_an_earlier_export_is_ever_replaced(runs, tmp_path, capsys):
    run, out = runs("standard"), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    flags = ["--run", str(run), "--out", str(out), "--format", "ours"]
    for more in ([], ["--overwrite"]):
        assert "is not an earlier export" in refused(capsys, *flags, *more)
    (out / "thesis.txt").unlink()
    exported(run, out)
    assert "add --overwrite" in refused(capsys, *flags)
    assert (out / "transformers").exists()
    exported(run, out, "--format", "ours", "--overwrite")
    assert not (out / "transformers").exists() and (out / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_export_leaves_the_earlier_one_as_it_was(runs, tmp_path, capsys, monkeypatch):
    run, out = runs("standard"), tmp_path / "out"
    exported(run, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def full(*arguments: object) -> None:
        raise export.CheckpointError("no space left")

    monkeypatch.setattr(export, "save_checkpoint", full)
    assert "no space left" in refused(capsys, "--run", str(run), "--out", str(out), "--overwrite")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_exported_is_refused_with_a_way_out(runs, vqa_data, tmp_path, capsys):
    run, out = runs("BlockDrop"), str(tmp_path / "out")
    flags = ["--run", str(run), "--out", out]
    assert "live decisions" in refused(capsys, *flags, "--global-k", "7")
    assert "every layer is dropped" in refused(capsys, *flags, "--global-k", "0")
    assert "decides nothing" in refused(
        capsys, "--run", str(runs("standard")), "--out", out, "--global-k", "1"
    )
    assert "neither the folder of a run nor a pretraining snapshot" in refused(
        capsys, "--run", str(tmp_path / "nothing"), "--out", out
    )
    assert "of a finetuning run give the folder" in refused(
        capsys, "--run", str(run / "BEST"), "--out", out
    )
    assert "is not the folder of a run" in refused(capsys, "--run", str(vqa_data), "--out", out)
    assert not list(tmp_path.iterdir())


def test_other_training_questions_than_those_of_the_run_are_refused(
    runs, vqa_data, tmp_path, capsys
):
    other = tmp_path / "data"
    other.mkdir()
    for path in vqa_data.iterdir():
        (other / path.name).symlink_to(path)
    (other / "vqa").unlink()
    (other / "vqa").mkdir()
    for path in (vqa_data / "vqa").iterdir():
        (other / "vqa" / path.name).symlink_to(path)
    file = other / "vqa" / "train.json"
    rows = json.loads(file.read_text())
    file.unlink()
    file.write_text(json.dumps(rows[:-5]))
    shown = refused(
        capsys,
        "--run",
        str(runs("SpotTune_Block")),
        "--out",
        str(tmp_path / "out"),
        "--data",
        str(other),
    )
    assert "are not the 64 that" in shown and "--data" in shown
    run = tmp_path / "unfinished"
    run.mkdir()
    for name in ("BEST.safetensors", "vocab.txt", "answers.json"):
        (run / name).symlink_to(runs("SpotTune_Block") / name)
    shown = refused(capsys, "--run", str(run), "--out", str(tmp_path / "out"))
    assert "has no result.json" in shown and "--resume" in shown


def test_the_example_for_transformers_in_the_readme_runs(runs, tmp_path, capsys):
    text = (repository_root() / "LXMERT" / "README.md").read_text(encoding="utf-8")
    (example,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if "transformers" in block
    )
    assert "snap/export/first/transformers" in example
    out = exported(runs("SpotTune_Block"), tmp_path / "out")
    capsys.readouterr()
    exec(example.replace("snap/export/first", str(out)), {})
    assert capsys.readouterr().out.strip() in strict_json(out / "answers.json")
