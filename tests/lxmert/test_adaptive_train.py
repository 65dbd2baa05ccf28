"""LXMERT/train.py and `Learner`: the flags, params and outputs of the adaptive LXMERT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.data.annotations import AnswerVocabulary, Example, read_lxmert_json
from common.data.vqa_metric import oracle_score
from common.errors import AdaptiveError, ConfigError
from common.runs.opened_run import open_run, training_questions
from common.training.checkpoint import load_checkpoint, load_meta
from lxrt.adaptive import PROGRAM, attention_lines, flop_lines, main
from lxrt.adaptive_params import PARAMS
from lxrt.learner import Learner
from tests.lxmert.runs import same_state, score_of_predictions, small_run, strict_json

ALL = ["--adaptive", "--sparse", "--layerdrop"]
TITLES = ("Self Language", "Cross", "Cross Self Language", "Cross Self Vision", "Self Vision")


@pytest.fixture(scope="module")
def data(vqa_data, pretrained):
    """Flags of the data alone."""
    words = small_run(vqa_data, pretrained)
    return [*words[:8], "--quiet", "--no-plots", "--no-tensorboard"]


@pytest.fixture(scope="module")
def run(vqa_data, pretrained):
    words = small_run(vqa_data, pretrained)
    words[words.index("--batchSize")] = "--bs"
    return [*words, "--epochs=2", *ALL]


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("adaptive") / "all"
    assert main([*run, "--output", str(out)]) == 0
    return out


def refused(capsys, *words):
    capsys.readouterr()
    assert main([*words]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and "Traceback" not in shown
    return shown


def parsed(*words):
    return PROGRAM.parser().parse_args(words)


def test_a_run_says_and_keeps_its_params(whole, capsys):
    meta = load_meta(whole / "BEST.safetensors")
    assert meta["params"] == {
        "adapt_span_enabled": True,
        "adapt_span_loss_coeff": 0.148,
        "adapt_span_ramp": 0.25,
        "adapt_span_init": 1.0,
        "sparse_enabled": True,
        "layer_sizes": {"lang": 2, "cross": 2, "vision": 2},
        "from_scratch": False,
        "layerdrop_enabled": True,
        "layerdrop_num_layers": 1,
        "bs": 16,
    }
    log = (whole / "log.log").read_text(encoding="utf-8")
    assert "sparse_enabled True, layer_sizes 2-2-2" in log
    for name in ("attn_span", "mask_size", "num_attention_heads", "nb_heads", "adapt_span_cache"):
        assert any(name in line and "without effect" in line for line in log.split("\n")), name
    result = strict_json(whole / "result.json")
    assert result["recipe"]["optim"] == "lookahead_lamb" and result["recipe"]["batch_size"] == 16
    assert all("span" in epoch["train_losses"] for epoch in result["epochs"])
    assert any(
        layer != 1.0 for m in result["epochs"][-1]["attention"].values() for layer in m["span"]
    )


def test_the_log_has_the_spans_of_every_module_after_every_epoch(whole):
    log = (whole / "log.log").read_text(encoding="utf-8").split("\n")
    record = strict_json(whole / "result.json")["epochs"][1]["attention"]
    for title in TITLES:
        for layer in range(2):
            lines = [line for line in log if line.startswith(f"{title} {layer} ")]
            if title == "Cross Self Vision" and layer == 1:
                assert not lines, "it reaches no answer"
                continue
            assert len(lines) == 2 and all(", α 1." in line for line in lines), title
    (unit,) = {line for line in log if "spans in keys" in line}
    words = float(unit.split("of ")[1].split(" word pieces")[0])
    assert "7.0 regions" in unit
    found = float([line for line in log if line.startswith("Self Language 1 ")][1].split()[3][:-1])
    spans = record["lang.2.head"]["span"]
    assert found == pytest.approx(words * sum(spans) / len(spans), rel=0.02)


def test_spans_of_both_directions_of_a_cross_layer_are_in_keys_of_either():
    record = {"cross.4.cross.head": {"span": [0.5, 1.0]}}
    assert attention_lines(record, {"lang": 8.0, "vision": 36.0}) == "Cross 3 27.00 / 6.00"


def test_a_stopped_run_goes_on_bit_for_bit(run, whole, tmp_path, capsys):
    run = [*run, "--output", str(tmp_path)]
    assert main([*run, "--max-steps", "5"]) == 0
    shown = refused(capsys, *run, "--resume", "--set", "adapt_span_loss_coeff=0.5", "--bs=8")
    assert "params.adapt_span_loss_coeff is 0.148 in the file, this run has 0.5" in shown
    assert "params.bs is 16 in the file, this run has 8" in shown
    assert "exists: add --resume" in refused(capsys, *run)
    assert main([*run, "--resume"]) == 0
    for name in ("BEST", "LAST"):
        same_state(*(folder / f"{name}.safetensors" for folder in (whole, tmp_path)))


def test_a_test_needs_no_flags_of_the_model_and_writes_the_evalai_form(
    whole, data, vqa_data, tmp_path, capsys, monkeypatch
):
    """The split of --test; without one `test`, whose answers are not public."""
    words = [*data, "--load_model", str(whole), "--output", str(tmp_path)]
    expected = strict_json(whole / "result.json")["accuracy"]["val"]["overall"]
    capsys.readouterr()
    assert main([*words, "--test", "minival"]) == 0
    assert f"overall {expected:.2f}" in capsys.readouterr().out
    found = score_of_predictions(tmp_path / "minival_predict.json", vqa_data)
    assert found["overall"] == pytest.approx(expected)
    assert main([*words, "--test"]) == 0
    rows = strict_json(tmp_path / "test_predict.json")
    asked = json.loads((vqa_data / "vqa" / "test.json").read_text())
    assert [sorted(row) for row in rows] == 30 * [["answer", "question_id"]]
    assert {row["question_id"] for row in rows} == {row["question_id"] for row in asked}
    monkeypatch.setattr("common.tasks.questions.TINY_IMAGES", 205)
    assert main([*words, "--test", "minival", "--tiny"]) == 0
    assert 0 < len(strict_json(tmp_path / "minival_predict.json")) < 100


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--set", "sparse_enabled=false"], "params.sparse_enabled is True"),
        (["--adapt_span_ramp", "0.5"], "params.adapt_span_ramp is 0.25"),
        (["--set", "layer_sizes=2,1,2"], "params.layer_sizes.cross is 2"),
    ],
)
def test_other_params_than_the_checkpoint_s_are_refused_by_name(whole, data, capsys, words, key):
    words = [*data, "--load_model", str(whole), *words]
    assert f"{key} in the file, this run has" in refused(capsys, *words, "--test", "minival")
    assert f"{key} in the file" in refused(capsys, *words, "--epochs=1", "--name", "unused")


def test_a_plain_checkpoint_is_not_tested_with_a_mechanism(run, data, tmp_path, capsys):
    words = [word for word in run if word not in ALL]
    assert main([*words, "--output", str(tmp_path / "plain")]) == 0
    log = (tmp_path / "plain" / "log.log").read_text(encoding="utf-8")
    assert "Self Language" not in log and "sparse_enabled False" in log
    words = [*data, "--load_model", str(tmp_path / "plain"), "--test", "minival"]
    assert "params.sparse_enabled is False" in refused(capsys, *words, "--sparse")
    assert main(words) == 0
    assert (tmp_path / "plain" / "minival_predict.json").is_file()


def test_yaml_set_and_flags_count_in_this_order(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(
        "params: {sparse_enabled: true, layer_sizes: {lang: 9, cross: 6, vision: 4}, bs: 64,\n"
        "         attn_span: 1024, mask_size: [20, 36], layerdrop_num_layers: null}\n"
        "config: {measure_flops: true, load_model: null}\n"
        "tiny: true\nlr: 0.1\nstrategy: BlockDrop\nfrom_scratch: true\n"
    )
    words = ["--config", str(file), "--set", "lr=0.2", "--set", "bs=32", "--set", "tiny=false"]
    found = parsed(*words, "--bs", "8", "--set", "layerdrop=0.3")
    assert (found.lr, found.batch_size, found.tiny, found.layerdrop) == (0.2, 8, False, 0.3)
    assert found.sparse_enabled and found.measure_flops and found.from_scratch
    assert found.layer_sizes == {"lang": 9, "cross": 6, "vision": 4}
    assert found.mask_size == "20,36" and found.attn_span == "1024"
    options = PROGRAM.options(found, "")
    assert options.model.layers == (9, 6, 4) and options.model.strategy == "BlockDrop"
    assert options.model.attention.normaliser == "entmax"
    assert options.run.folder == Path("snap/adaptive/sparse_layerdrop_BlockDrop")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "attn_spam=3"], "unknown setting 'attn_spam': did you mean attn_span"),
        (["--set", "lr"], "--set lr: give key=value"),
        (["--set", "tiny=3"], "setting tiny is 3: give true or false"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--load_model", "nobody_s"], "no checkpoint 'nobody_s'"),
        (["--set", "adapt_span_ramp=32", "--adaptive"], "span ramp 32.0: give a share"),
        (["--layerdrop", "1.5"], "LayerDrop rate 1.5"),
    ],
)
def test_senseless_settings_are_named(capsys, words, message):
    assert message in refused(capsys, *words)


def test_the_published_params_can_be_given_as_they_are():
    """But for two in other units; what has no effect is known to have none."""
    for param in PARAMS:
        assert f"--{param.name}" in PROGRAM.parser().format_help()
    published = {p.name: p.published for p in PARAMS if p.name not in ("adapt_span_ramp",)}
    learner = Learner("unused", **published)
    assert learner.settings == published
    with pytest.raises(ConfigError, match="unknown setting 'spans'"):
        Learner("unused", spans=3)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], (None, 0, 0.0)),
        (["--layerdrop"], (None, 1, 0.0)),
        (["--layerdrop", "--set", "layerdrop_num_layers=2"], (None, 2, 0.0)),
        (["--layerdrop", "0.2"], (None, 0, 0.2)),
        (["--set", "layerdrop_num_layers=2"], (None, 0, 0.0)),
        (["--set", "layerdrop_enabled=true"], (None, 1, 0.0)),
        (["--adaptive"], (0.148, 0, 0.0)),
        (["--span-over", "keys"], (0.148, 0, 0.0)),
        (["--adaptive", "--span-loss", "0.5"], (0.5, 0, 0.0)),
        (["--set", "adaptive_enable=true", "--adapt_span_loss_coeff=0"], (0.0, 0, 0.0)),
    ],
)
def test_what_the_published_flags_become(words, options):
    found = PROGRAM.parse(words)
    loop = found.base.loop
    drop = (loop.layerdrop.count, loop.layerdrop.rate) if loop.layerdrop else (0, 0.0)
    assert (loop.span_loss, *drop) == options
    assert found.model.weights.load_lxmert_qa == "default"


def test_the_recipe_of_base_is_the_published_one():
    recipe = PROGRAM.finetuning(PROGRAM.parse(["--epochs=1"]), "base").recipe
    assert recipe.optim == "published_lookahead_lamb" and recipe.batch_size == 128
    assert (recipe.lowest_lr, recipe.lr, recipe.cycle_steps) == (1e-5, 5e-5, 2000)
    assert recipe.clip == 5 and recipe.weight_decay == 1.2e-6


@pytest.mark.slow  # the combinations are those of tests/lxmert/test_attention.py
def test_everything_goes_with_a_strategy(run, tmp_path):
    words = [*run, "--epochs=1", "--strategy", "SpotTune_Block", "--output", str(tmp_path)]
    assert main(words) == 0
    assert strict_json(tmp_path / "result.json")["decisions"]["names"][0] == "lang.1"
    assert "Self Vision 1" in (tmp_path / "log.log").read_text(encoding="utf-8")
    run = open_run(tmp_path)
    assert run.adaptive is not None and len(training_questions(run)) == 64


def test_a_learner_trains_answers_saves_and_loads(run, vqa_data, pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {
        "dataset": "vqa",
        "data": vqa_data,
        "size": "small",
        "gpus": "cpu",
        "loadLXMERTQA": pretrained,
        "questions": 64,
        "bs": 16,
        "quiet": True,
        "no_plots": True,
        "adaptive": True,
    }
    learner = Learner("run", **settings)
    with pytest.raises(ConfigError, match="no finetuned model yet"):
        learner.evaluate()
    result = learner.train(num_epochs=1)
    scores = learner.evaluate()
    assert scores["overall"] == pytest.approx(result["accuracy"]["val"]["overall"])
    assert learner.train(num_epochs=1, resume=True)["accuracy"] == result["accuracy"]
    with pytest.raises(ConfigError, match="exists: add --resume"):
        learner.train(num_epochs=1)
    assert learner.save("kept") == Path("snap/adaptive/kept")
    with pytest.raises(ConfigError, match="choose another name"):
        learner.save("kept")
    other = Learner("other", **{k: v for k, v in settings.items() if k != "adaptive"})
    other.load("kept")
    assert other.predict() == learner.predict()
    assert len(other.predict("test")) == 30 and (tmp_path / "other/test_predict.json").is_file()
    assert type(other.model).__name__ == "VQAModel"
    assert other.oracle_score() == 100.0
    wrong = Learner("third", **settings | {"adaptive": False, "sparse": True})
    wrong.load("kept")
    with pytest.raises(AdaptiveError, match=r"params.sparse_enabled is False"):
        wrong.evaluate()


def test_the_oracle_knows_the_best_of_the_answers_that_there_are(vqa_data):
    examples = [
        Example(1, "a", "?", {"red": 0.3, "blue": 1.0}),
        Example(2, "a", "?", {"green": 1.0}),
    ]
    assert oracle_score(AnswerVocabulary(["grey", "red"]), examples)["overall"] == 15.0
    assert oracle_score(AnswerVocabulary(["blue", "green"]), examples)["overall"] == 100.0
    minival = read_lxmert_json(vqa_data / "vqa" / "minival.json")
    assert oracle_score(AnswerVocabulary(["yes", "no"]), minival)["other"] == 0.0


def test_measured_flops_are_said(whole):
    found = strict_json(whole / "result.json")
    said = flop_lines(found)
    assert f"{found['flops']['per_sample'] / 1e9:.4g} GFLOP per sample" in said
    assert f"{found['attention_zero_share']:.1%}" in said


@pytest.mark.slow
def test_the_published_mechanism_trains_and_goes_on(vqa_data, pretrained, tmp_path):
    """Its spans are of the batch's size, its loss needs no factor, and its α have no limits."""
    run = small_run(vqa_data, pretrained)
    run[run.index("--batchSize")] = "--bs"
    run += ["--span-over", "published", "--attention", "published", "--output", str(tmp_path)]
    assert main([*run, "--max-steps", "2"]) == 0
    assert main([*run, "--resume"]) == 0
    epoch = strict_json(tmp_path / "result.json")["epochs"][0]
    assert "span" in epoch["train_losses"]
    assert all(len(entry["span"]) == len(entry["alpha"]) for entry in epoch["attention"].values())
    state = load_checkpoint(tmp_path / "BEST.safetensors")[0]["model"]
    shapes = {tuple(x.shape) for name, x in state.items() if name.endswith("current_val")}
    assert shapes == {(16, 4, 1, 1)}
