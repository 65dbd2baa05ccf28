"""Pretraining on the embedded data: what is masked, the command, its small file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.data.annotations import Example
from common.data.datasets import load_split, open_features, resolve_dataset
from common.data.easy_vqa.captions import caption_examples
from common.data.easy_vqa.regions import ATTRIBUTE_CLASSES
from common.data.tokenizer import Tokenizer, small_vocabulary
from common.modules.losses import IGNORED
from common.training.checkpoint import load_checkpoint, load_meta
from common.training.runtime import make_runtime
from common.training.weights import load_weights
from tests.lxmert.runs import same_state, strict_json, tensors
from tests.vilbert.runs import refused
from vilbert.finetuning import train
from vilbert.inputs import Limits
from vilbert.loading import DECODER
from vilbert.pretraining import (
    HEADS,
    SmallPretrainingTask,
    load_samples,
    main,
    pretrain_options,
    pretrain_parser,
)
from vilbert.pretraining_samples import Samples
from vilbert.sizes import HOME, ViLBertConfig

CLASSES = 364
COMMITTED = HOME / "pretrained" / "easy_vqa_small"


@pytest.fixture(autouse=True)
def small_data(easy_vqa_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images, built for the tests."""
    monkeypatch.setattr("common.data.datasets.repository_root", lambda: easy_vqa_root)
    monkeypatch.setattr("vilbert.pretraining.TINY_IMAGES", 20)


@pytest.fixture(scope="module")
def samples(easy_vqa_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Questions and captions about 60 images."""
    dataset = resolve_dataset("easy_vqa", easy_vqa_root)
    questions = load_split(dataset, "pretrain", 60)
    examples = [*questions, *caption_examples(questions)]
    folder, answers = tmp_path_factory.mktemp("words"), dataset.vocabulary()
    words = small_vocabulary([*(e.question for e in examples), *answers.answers])
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    features = open_features(dataset, "pretrain")
    return Samples(examples, features, answers, Tokenizer(folder), Limits(), CLASSES)


def run(out: Path, *more: str) -> list[str]:
    """Flags of a quiet run of two epochs on a few images."""
    words = ["--tiny", "--epochs", "2", "--batch-size", "128", "--gpus", "cpu", "--quiet"]
    return [*words, "--no-plots", "--no-tensorboard", "--output", str(out), *more]


@pytest.fixture(scope="module")
def whole(easy_vqa_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, with its export in `export`."""
    out = tmp_path_factory.mktemp("pretraining")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.data.datasets.repository_root", lambda: easy_vqa_root)
        patch.setattr("vilbert.pretraining.TINY_IMAGES", 20)
        assert main(run(out, "--export", str(out / "export"))) == 0
    return out


# Samples


def test_questions_whose_answer_is_asked_for_are_read_whole(samples):
    """With their own image: neither words nor regions are masked, nor is alignment asked for."""
    asked = [i for i, e in enumerate(samples.examples) if e.answers is not None][:200]
    batch = samples.draw(asked, seed=3, epoch=1)
    assert batch.labels["asked"].all()
    assert (batch.labels["words"] == IGNORED).all()
    assert (batch.labels["region_label"] == IGNORED).all()
    assert (batch.labels["aligned"] == IGNORED).all()
    ids, _ = samples.tokenizer.encode([samples.examples[i].question for i in asked], 20)
    assert torch.equal(batch.inputs["input_ids"], ids)
    own = samples.features.read([samples.examples[i].image_id for i in asked])
    torch.testing.assert_close(batch.inputs["features"][:, 1:], own.features)
    for row, i in zip(batch.labels["answer"], asked, strict=True):
        found = {samples.vocabulary.answers[n]: float(row[n]) for n in row.nonzero()[:, 0]}
        assert found == samples.examples[i].answers


def captions(samples: Samples) -> list[int]:
    return [i for i, e in enumerate(samples.examples) if e.answers is None]


def shares(labels: dict[str, Tensor], inputs: dict[str, Tensor]) -> tuple[float, float]:
    """Of words and of regions that could be masked, those that are."""
    stated = labels["aligned"] == 0
    words = inputs["attention_mask"][stated].sum() - 2 * stated.sum()
    regions = inputs["image_attention_mask"][stated][:, 1:].sum()
    masked = (labels["words"][stated] != IGNORED).sum(), (labels["region_label"][stated] == 1).sum()
    return float(masked[0] / words), float(masked[1] / regions)


def test_captions_lose_words_and_regions_or_get_another_image(samples):
    places = captions(samples) * 6
    batch = samples.draw(places, seed=3, epoch=0)
    assert not batch.labels["asked"].any()
    aligned = batch.labels["aligned"]
    assert set(aligned.tolist()) == {0, 1}
    assert 0.4 < float((aligned == 1).float().mean()) < 0.6
    apart = aligned == 1
    assert (batch.labels["words"][apart] == IGNORED).all()
    assert (batch.labels["region_label"][apart] == IGNORED).all()
    words, regions = shares(batch.labels, batch.inputs)
    assert 0.1 < words < 0.25 and 0.1 < regions < 0.2


def test_a_masked_region_is_hidden_mostly_and_its_class_is_asked_for(samples):
    places = captions(samples) * 6
    batch = samples.draw(places, seed=3, epoch=0)
    masked = batch.labels["region_label"] == 1
    hidden = (batch.inputs["features"][:, 1:] == 0).all(-1) & masked
    assert 0.8 < float(hidden.sum() / masked.sum()) < 0.97
    own = samples.features.read([samples.examples[i].image_id for i in places])
    expected = own.object_ids * ATTRIBUTE_CLASSES + own.attribute_ids
    found = batch.labels["region_target"]
    assert found.shape[-1] == CLASSES and (found.sum(-1) == 1).all()
    assert torch.equal(found.argmax(-1)[masked], expected[masked])


def test_what_is_masked_depends_on_sample_epoch_and_seed_alone(samples):
    """Not on the batch, the process or what was drawn before."""
    places = captions(samples)[:40]
    whole = samples.draw(places, seed=3, epoch=2)
    parts = [samples.draw(places[i : i + 10], seed=3, epoch=2) for i in range(0, 40, 10)]
    assert torch.equal(torch.cat([p.labels["aligned"] for p in parts]), whole.labels["aligned"])
    label = "region_label"
    assert torch.equal(torch.cat([p.labels[label] for p in parts]), whole.labels[label])
    for other in (samples.draw(places, 3, 1), samples.draw(places, 4, 2)):
        assert not torch.equal(other.labels[label], whole.labels[label])


def test_training_and_held_out_samples_share_no_image(tmp_path):
    options = pretrain_options(pretrain_parser().parse_args(run(tmp_path)), "")
    train_part, heldout = load_samples(options, tmp_path, CLASSES)
    images = [{e.image_id for e in part.examples} for part in (train_part, heldout)]
    assert images[0] and images[1] and not images[0] & images[1]
    for part in (train_part, heldout):
        assert {e.answers is None for e in part.examples} == {True, False}
    known = set(train_part.tokenizer.text().split("\n"))
    assert {"circle", "triangle"} <= known


def test_a_caption_says_nothing_about_answers(samples):
    example: Example = samples.examples[captions(samples)[0]]
    assert example.answers is None and example.answer_type is None


def test_training_samples_are_masked_anew_in_every_epoch(samples, tmp_path):
    words = pretrain_parser().parse_args(["--output", str(tmp_path), "--seed", "3"])
    task = SmallPretrainingTask(samples, samples, make_runtime("cpu"), pretrain_options(words, ""))
    places = range(len(samples))
    first, again, second = (task.read(places, epoch).inputs["input_ids"] for epoch in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert torch.equal(second, samples.draw(places, 3, 2).inputs["input_ids"])


# The command


def test_a_stopped_run_goes_on_bit_for_bit(whole, tmp_path, capsys):
    """In an epoch; at its end is for shared code: common/training/test_training.py."""
    torch.manual_seed(1)
    assert main(run(tmp_path, "--max-steps", "1")) == 0
    assert not (tmp_path / "result.json").exists()
    assert "stopped after 1 of 4 steps" in capsys.readouterr().out
    torch.manual_seed(2)
    assert main(run(tmp_path, "--resume")) == 0
    for name in ("BEST", "LAST", "pytorch_model_1"):
        files = (folder / f"{name}.safetensors" for folder in (whole, tmp_path))
        assert same_state(*files) > 50
    first, second = (strict_json(folder / "result.json") for folder in (whole, tmp_path))
    assert first["losses"] == second["losses"] and first["accuracy"] == second["accuracy"]
    for a, b in zip(first["epochs"], second["epochs"], strict=True):
        assert dict(tensors(a)) == dict(tensors(b))


def test_the_result_has_losses_and_accuracies_of_held_out_samples(whole):
    result = strict_json(whole / "result.json")
    names = {"masked_lm_loss", "masked_img_loss", "next_sentence_loss", "answer"}
    assert result["task"] == "pretraining" and result["backbone"] == "vilbert"
    assert set(result["losses"]["train"]) == set(result["losses"]["val"]) == names
    assert result["losses"]["val"] == result["epochs"][result["best_epoch"]]["heldout_losses"]
    first, last = (epoch["train_loss"] for epoch in result["epochs"])
    assert last < first and len(result["epochs"]) == 2
    assert result["accuracy"]["val"].keys() >= {"overall", "yes/no", "count"}


def test_the_export_is_half_of_the_best_epoch_without_the_decoder(whole):
    path = whole / "export" / "model.safetensors"
    best = load_checkpoint(whole / "BEST.safetensors")[0]["model"]
    small, meta = load_weights(path), load_meta(path)
    assert small.keys() == best.keys() - {DECODER}
    assert all(x.dtype == torch.float16 for x in small.values() if x.is_floating_point())
    assert all(torch.equal(x, best[name].half()) for name, x in small.items())
    assert (path.parent / "vocab.txt").read_text() == (whole / "vocab.txt").read_text()
    assert meta["held_out"]["heldout_losses"] == strict_json(whole / "result.json")["losses"]["val"]
    assert {name.split(".")[0] for name in small} >= {"bert", "cls", "vil_prediction"}
    assert "vil_binary_prediction" in HEADS  # alignment, whose head is one of `cls`


def test_finetuning_starts_from_the_export_and_from_the_committed_model(whole, tmp_path, capsys):
    config = ["--config_file", str(HOME / "config" / "easy_vqa_small.json")]
    flags = ["--dataset", "easy_vqa", "--questions", "32", "--max-steps", "1", "--gpus", "cpu"]
    flags += ["--quiet", "--no-plots", "--no-tensorboard", *config]
    for name, path in (("own", whole / "export"), ("committed", COMMITTED)):
        file = path / "model.safetensors"
        start = ["--from_pretrained", str(file)] if name == "own" else []
        assert train([*flags, *start, "--output", str(tmp_path / name), "--lr", "0"]) == 0
        shown = capsys.readouterr().out
        assert f"{file}: " in shown and "classifier with 13 answers" in shown
        state = load_checkpoint(tmp_path / name / "LAST.safetensors")[0]["model"]
        weights = load_weights(file)
        started = [n for n in weights if n in state and not n.startswith("vil_prediction.main.3")]
        assert len(started) > 100
        assert all(torch.equal(state[n], weights[n].float()) for n in started)
        # The rows of the answers are copied by their texts.
        answers = strict_json(tmp_path / name / "answers.json")
        rows = [load_meta(file)["answers"].index(answer) for answer in answers]
        bias = "vil_prediction.main.3.bias"
        assert torch.equal(state[bias], weights[bias].float()[rows])


def test_the_committed_model_is_small_and_fits_the_shipped_config():
    size = sum(path.stat().st_size for path in COMMITTED.iterdir())
    assert size < 10_000_000
    meta = load_meta(COMMITTED / "model.safetensors")
    assert (meta["backbone"], meta["task"], meta["size"]) == ("vilbert", "pretraining", "small")
    config = ViLBertConfig.from_dict(meta["config"])
    tokenizer = Tokenizer(COMMITTED)
    assert config.vocab_size == len(tokenizer) and meta["vocabulary"] == tokenizer.digest()
    assert len(meta["answers"]) == config.num_labels == 13
    # The question alone answers 83 % of them.
    assert meta["held_out"]["heldout_accuracies"]["yes/no"] > 90


def test_other_settings_and_used_folders_are_refused(whole, tmp_path, capsys):
    shown = refused(capsys, run(whole, "--resume", "--lr", "0.1"), main)
    assert "lr is 0.001 in the file, this run has 0.1" in shown
    assert "LAST.safetensors exists: add --resume" in refused(capsys, run(whole), main)
    shown = refused(capsys, run(tmp_path / "a", "--batch-size", "99999"), main)
    assert "--batch-size 99999: there are" in shown
    shown = refused(capsys, run(tmp_path / "b", "--config_file", "nowhere.json"), main)
    assert "nowhere.json: no such file" in shown
    assert "nothing to resume" in refused(capsys, run(tmp_path / "c", "--resume"), main)
