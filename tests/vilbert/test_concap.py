"""Pretraining on images with captions: records, what is masked, the command."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.data.tokenizer import Tokenizer
from common.errors import DataError
from common.modules.losses import IGNORED
from common.training.weights import load_weights
from tests.common.own_detector import check_commands
from tests.lxmert.runs import same_state, strict_json, tensors
from tests.vilbert.concap_files import (
    CLASSES,
    SIZE,
    WIDTH,
    caption,
    pack,
    record,
    write_concap,
    write_records,
)
from tests.vilbert.runs import SIZES, TaskFiles, refused, without, write_bert
from tests.vilbert.runs import write_files as write_task_files
from vilbert.concap import concap_options, concap_parser, main
from vilbert.concap_data import ConceptualCaptions, find_records, parse_record, read_caption_list
from vilbert.concap_samples import CaptionSamples, RecordedCaptions
from vilbert.finetuning import train
from vilbert.inputs import Limits
from vilbert.retrieval_command import main as retrieve

PLACE = "x.lmdb: entry '00000000'"


def test_a_record_is_read_as_it_was_written():
    found = parse_record(pack(record(3)), PLACE)
    features, classes, boxes, count, height, width, image, text = record(3)
    assert np.array_equal(found.features, features) and np.array_equal(found.boxes, boxes)
    assert np.array_equal(found.classes, classes) and len(found.features) == count
    assert (found.height, found.width) == (height, width) == SIZE[::-1]
    assert (found.image_id, found.caption) == (image, text)


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", ">f4"])
def test_other_types_of_numbers_are_read(kind):
    changed = record(3)
    changed[0] = changed[0].astype(kind)
    found = parse_record(pack(changed), PLACE)
    torch.testing.assert_close(found.features, torch.tensor(record(3)[0]), atol=2e-3, rtol=1e-3)


def _changed(place: int, value: Any) -> bytes:
    found = record(3)
    found[place] = value(found[place]) if callable(value) else value
    return pack(found)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no msgpack"),
        (pack(record(3))[:-20], "no msgpack"),
        (pack(record(3)[:7]), "expected a list of features, cls_prob, boxes"),
        (pack({"a": 1}), "expected a list of"),
        (_changed(0, lambda x: x[:1]), "field 'features' has shape (1, 2048): expected 2 rows"),
        (_changed(0, lambda x: x.tolist()), "field 'features' is "),
        (_changed(0, lambda x: x * np.nan), "field 'features': a number that is not finite"),
        (_changed(0, lambda x: x.astype(complex)), "an array of type '<c16': only numbers"),
        (_changed(1, lambda x: x * 2), "field 'cls_prob': rows that are no probabilities"),
        (_changed(1, lambda x: -x), "field 'cls_prob': rows that are no probabilities"),
        (_changed(2, lambda x: x[:, :3]), "field 'boxes' has shape (2, 3): expected 2 rows of 4"),
        (_changed(2, lambda x: x + 1000), "field 'boxes'"),
        (_changed(3, 0), "field 'num_boxes' is 0: expected a whole number from 1"),
        (_changed(3, 10**9), "field 'num_boxes' is 1000000000"),
        (_changed(4, "tall"), "field 'image_h' is 'tall'"),
        (_changed(7, "  "), "field 'caption' is '  ': expected a text"),
        (_changed(7, 7), "field 'caption' is 7: expected a text"),
        (pack([{b"nd": True, b"type": "|O", b"shape": [1], b"data": b"x"}]), "type '|O'"),
        (pack([{b"nd": True, b"type": "<f4", b"shape": [9], b"data": b"1234"}]), "of shape [9]"),
        (pack([{b"nd": True, b"type": "<f4", b"shape": [-1], b"data": b"1234"}]), "of shape [-1]"),
        (pack([{b"nd": True, b"type": "<f4", b"shape": [1], b"data": b"123"}]), "it is cut off"),
    ],
)
def test_a_wrong_record_is_one_error_that_names_it(data, message):
    with pytest.raises(DataError) as caught:
        parse_record(data, PLACE)
    assert str(caught.value).startswith(PLACE) and message in str(caught.value)


def test_several_files_are_one_list(tmp_path):
    whole = ConceptualCaptions(find_records(write_concap(tmp_path / "a"), "training"))
    parts = ConceptualCaptions(find_records(write_concap(tmp_path / "b", parts=3), "training"))
    assert len(parts.files) == 3 and len(parts) == len(whole) == 32
    assert (parts.width, parts.classes) == (WIDTH, CLASSES)
    for place in (0, 9, 10, 11, 21, 31):
        assert parts.read(place).caption == whole.read(place).caption == caption(place)
    regions, texts = parts.batch([20, 3])
    assert texts == [caption(20), caption(3)]
    assert regions.mask.sum(1).tolist() == [4, 2] and regions.features.shape == (2, 4, WIDTH)
    assert float(regions.class_probabilities[1, 2:].abs().sum()) == 0


def test_files_that_are_not_whole_are_refused(tmp_path):
    path = write_records(tmp_path / "training_feat_all.lmdb", [record(0)], finished=False)
    with pytest.raises(DataError, match="'__keys__' is missing: it was not written to its end"):
        ConceptualCaptions([path])
    path = write_records(tmp_path / "b.lmdb", [])
    with pytest.raises(DataError, match=r"b\.lmdb: no record in it"):
        ConceptualCaptions([path])
    path = write_records(tmp_path / "c.lmdb", [record(0), b"nothing"])
    found = ConceptualCaptions([path])
    with pytest.raises(DataError, match=r"c\.lmdb: entry '00000001'"):
        found.read(1)
    path = write_records(tmp_path / "d.lmdb", [record(0), record(1, width=6)])
    with pytest.raises(DataError, match=r"entry '00000001': field 'features' has shape \(3, 6\)"):
        ConceptualCaptions([path]).batch([0, 1])
    path = write_records(tmp_path / "e.lmdb", [record(0), _other_classes()])
    with pytest.raises(DataError, match=r"entry '00000001': field 'cls_prob' has shape \(3, 5\)"):
        ConceptualCaptions([path]).batch([0, 1])
    parts = write_concap(tmp_path / "parts", parts=3)
    (parts / "training_feat_part_1.lmdb").unlink()
    with pytest.raises(DataError, match=r"training_feat_part_1\.lmdb is missing"):
        find_records(parts, "training")
    with pytest.raises(DataError, match=r"no training_feat_all\.lmdb and no training_feat_part"):
        find_records(tmp_path / "nowhere", "training")
    (tmp_path / "caption_train.json").write_text(json.dumps({"1": "one", "2": "one"}))
    with pytest.raises(DataError, match="2 captions: a wrong caption is one of another image"):
        read_caption_list(tmp_path / "caption_train.json")
    (tmp_path / "caption_train.json").write_text(json.dumps({"1": 2}))
    with pytest.raises(DataError, match="caption_train.json"):
        read_caption_list(tmp_path / "caption_train.json")


def _other_classes() -> list[Any]:
    found = record(1)
    found[1] = found[1][:, :5] / found[1][:, :5].sum(1, keepdims=True)
    return found


# Samples


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TaskFiles:
    """Vocabulary, sizes and a BERT."""
    made = write_task_files(tmp_path_factory.mktemp("vilbert"))
    write_bert(made)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_concap(tmp_path_factory.mktemp("concap"))


@pytest.fixture
def records(data: Path) -> Iterator[ConceptualCaptions]:
    with closing(ConceptualCaptions(find_records(data, "training"))) as found:
        yield found


def samples(
    files: TaskFiles, data: Path, records: ConceptualCaptions, features: bool = False
) -> CaptionSamples:
    source = RecordedCaptions(records, read_caption_list(data / "caption_train.json"))
    return CaptionSamples(source, Tokenizer(files.bert), Limits(12, 37), features)


def test_captions_of_other_images_and_what_is_masked(files, data, records):
    part = samples(files, data, records)
    places = list(range(32))
    counts = Counter()
    for epoch in range(12):
        batch = part.draw(places, seed=3, epoch=epoch)
        word_places = batch.inputs["word_places"]
        masked = batch.labels["region_label"] == 1
        present = batch.inputs["image_attention_mask"][:, 1:].bool()
        hidden = (batch.inputs["features"][:, 1:] == 0).all(-1) & present
        assert not (masked & ~present).any() and not (hidden & ~masked).any()
        assert len(batch.labels["words"]) == int(word_places.sum())
        assert (batch.labels["words"] != IGNORED).all()
        # What is read whole is the image's own caption where the label says so.
        own, _ = part.tokenizer.encode([caption(n) for n in places])
        same = (batch.inputs["input_ids"] == own).all(1)
        whole = ~word_places.any(1)
        assert torch.equal(same[whole], batch.labels["aligned"][whole] == 0)
        counts["foreign"] += int(batch.labels["aligned"].sum())
        counts["words"] += int(batch.inputs["attention_mask"].sum()) - 2 * len(places)
        counts["masked words"] += int(word_places.sum())
        for name, found in (("present", present), ("masked", masked), ("hidden", hidden)):
            counts[name] += int(found.sum())
    assert 0.42 < counts["foreign"] / (12 * 32) < 0.58
    assert 0.1 < counts["masked words"] / counts["words"] < 0.2
    assert 0.1 < counts["masked"] / counts["present"] < 0.2
    assert 0.8 < counts["hidden"] / counts["masked"] < 1
    regions, _, classes = part.source.batch(places[:4])
    width = classes.shape[1]
    torch.testing.assert_close(batch.labels["region_target"][:4, :width], classes)
    # The image as a whole: what is left of its regions, over the number of all of them.
    whole = batch.inputs["features"][:, 1:].sum(1) / present.sum(1, keepdim=True)
    torch.testing.assert_close(batch.inputs["features"][:, 0], whole)
    assert batch.weights["masked_img_loss"] == float(masked.sum())
    told = samples(files, data, records, features=True).draw(places[:4], seed=3, epoch=11)
    torch.testing.assert_close(told.labels["region_target"], regions.features)


def test_what_is_drawn_depends_on_the_pair_alone(files, data, records):
    part = samples(files, data, records)
    both, one = part.draw([5, 9], seed=3, epoch=1), part.draw([9], seed=3, epoch=1)
    width = one.inputs["input_ids"].shape[1]
    assert torch.equal(both.inputs["input_ids"][1:, :width], one.inputs["input_ids"])
    assert both.labels["aligned"][1] == one.labels["aligned"][0]
    other = part.draw([5, 9] * 8, seed=3, epoch=2).inputs["input_ids"]
    again = part.draw([5, 9] * 8, seed=3, epoch=1).inputs["input_ids"]
    assert other.shape != again.shape or not torch.equal(other, again)


# The command


def run(files: TaskFiles, data: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--train_file", str(data), "--validation_file", str(data)),
        *("--bert_model", str(files.bert), "--config_file", str(files.config)),
        *("--train_batch_size", "8", "--num_train_epochs", "2.0", "--window", "10"),
        *("--gpus", "cpu", "--quiet", "--no-tensorboard", "--output", str(out), *more),
    ]


@pytest.fixture(scope="module")
def dropping(files: TaskFiles) -> Path:
    """Sizes with dropout, whose random numbers a resumed run has to go on with."""
    path = files.folder / "dropping.json"
    rates = dict.fromkeys(("hidden_dropout_prob", "v_hidden_dropout_prob"), 0.2)
    path.write_text(json.dumps(SIZES | rates))
    return path


@pytest.fixture(scope="module")
def whole(files, data, dropping, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("pretraining")
    assert main(run(files, data, out, "--config_file", str(dropping))) == 0
    return out


@pytest.mark.parametrize("more", [[], ["--predict_feature"], ["--without_coattention"]])
def test_losses_fall(files, data, tmp_path, more):
    words = run(files, data, tmp_path, *more, "--optim", "adamw", "--lr", "3e-3")
    words = [*without(words, "--num_train_epochs"), "--num_train_epochs", "6"]
    assert main(words) == 0
    result = strict_json(tmp_path / "result.json")
    epochs = result["epochs"]
    for name in ("masked_lm_loss", "masked_img_loss"):
        assert epochs[-1]["train_losses"][name] < epochs[0]["train_losses"][name], name
    alignment = result["losses"]["val"]["next_sentence_loss"]
    assert (alignment == 0) == ("--without_coattention" in more)
    assert result["accuracy"]["val"]["count"] == 8
    state = load_weights(tmp_path / "pytorch_model_5.safetensors")
    wide = WIDTH if more == ["--predict_feature"] else CLASSES
    assert len(state["cls.imagePredictions.decoder.bias"]) == wide


@pytest.mark.parametrize("stop", ["2", "6"])
def test_a_run_that_was_stopped_in_an_epoch_goes_on_bit_for_bit(
    files, data, dropping, whole, tmp_path, stop
):
    words = run(files, data, tmp_path, "--config_file", str(dropping))
    torch.manual_seed(123)
    assert main([*words, "--max-steps", stop]) == 0
    torch.manual_seed(321)
    assert main([*words, "--resume", "--num_workers", "2"]) == 0
    for name in ("BEST", "LAST"):
        same_state(*(folder / f"{name}.safetensors" for folder in (whole, tmp_path)))
    first, second = (strict_json(f / "result.json")["epochs"] for f in (whole, tmp_path))
    for a, b in zip(first, second, strict=True):
        assert dict(tensors(a)) == dict(tensors(b))


@pytest.mark.parametrize("features", [False, True])
def test_a_pretrained_model_is_a_start_for_tasks_and_for_retrieval(
    files, data, others, tmp_path, features, capsys
):
    """Also one that has learned to tell features, which has no classes of regions."""
    more = ["--predict_feature"] if features else []
    words = without(run(files, data, tmp_path / "start", *more), "--bert_model")
    words += ["--bert_model", str(others.bert), "--from_pretrained", str(others.pretrained)]
    words += ["--config_file", str(others.config)]
    assert main(words) == 0
    start = ["--from_pretrained", str(tmp_path / "start" / "pytorch_model_1.safetensors")]
    words = without(others.train("9", tmp_path / "run"), "--from_pretrained")
    capsys.readouterr()
    assert train([*words, *start]) == 0
    shown = capsys.readouterr().out
    assert "tensors loaded" in shown and ("not in this model: cls" in shown) == features
    words = without(others.test("x", tmp_path / "zero"), "--from_pretrained")
    zero = ["--zero_shot", "--config_file", str(others.config)]
    assert retrieve([*words, *start, *zero]) == 0
    if not features:
        words = without(others.test("x", tmp_path / "other"), "--from_pretrained")
        check_commands(retrieve, [*words, *start, *zero], Path(start[1]), capsys)


def test_weights_of_another_detector_are_refused_or_taken(
    files, data, dropping, whole, tmp_path, capsys
):
    shutil.copytree(whole, tmp_path / "start")
    start = tmp_path / "start" / "BEST.safetensors"
    words = run(files, data, tmp_path / "out", "--config_file", str(dropping))
    words += ["--from_pretrained", str(start), "--max-steps", "1", "--overwrite"]
    check_commands(main, words, start, capsys)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--start_epoch", "3"], "--start_epoch 3: go on with --resume instead"),
        (["--baseline"], "--baseline: pretraining the single-stream model never worked"),
        (["--max_regions", "0"], "--max_regions 0"),
        (["--window", "0"], "a window of 0 samples"),
        (["--freeze", "9"], "--freeze 9: the text layers are 0 to 2"),
        (["--train_file", "nowhere"], "nowhere: no training_feat_all.lmdb"),
        (["--validation_file", "TRAINING"], "is trained on and validated on: give two files"),
    ],
)
def test_what_cannot_be_is_refused(files, data, tmp_path, capsys, more, message):
    more = [str(data / "training_feat_all.lmdb") if m == "TRAINING" else m for m in more]
    assert message in refused(capsys, run(files, data, tmp_path / "x", *more), main)


def test_classes_of_another_number_are_refused(files, data, tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(SIZES | {"v_target_size": 9}))
    shown = refused(capsys, run(files, data, tmp_path / "x", "--config_file", str(path)), main)
    assert f"{path}: key v_target_size: 9: the regions have {CLASSES} classes" in shown


def test_the_flags_of_the_original(tmp_path):
    words = "--from_pretrained bert-base-uncased --bert_model bert-base-uncased --config_file "
    words += "config/bert_base_6layer_6conect.json --learning_rate 1e-4 --train_batch_size 512 "
    words += "--save_name pretrained --distributed --dataset conceptual_captions --num_workers 3"
    options = concap_options(concap_parser().parse_args(words.split()), "")
    assert options.run.folder == Path("save/pretrained")
    assert (options.loop.batch_size, options.lr, options.loop.epochs) == (512, 1e-4, 10)
    assert (options.limits.tokens, options.limits.regions, options.optim) == (36, 37, "bert")


def test_embedded_captions(easy_vqa_root, tmp_path, monkeypatch):
    monkeypatch.setattr("common.data.datasets.repository_root", lambda: easy_vqa_root)
    monkeypatch.setattr("vilbert.concap.TINY_IMAGES", 20)
    words = ["--dataset", "easy_vqa", "--tiny", "--epochs", "1", "--gpus", "cpu", "--quiet"]
    words += ["--no-tensorboard", "--output", str(tmp_path / "run"), "--batch-size", "16"]
    assert main([*words, "--export", str(tmp_path / "out")]) == 0
    result = strict_json(tmp_path / "run" / "result.json")
    assert (result["dataset"], result["task"]) == ("easy_vqa", "pretraining")
    assert (tmp_path / "out" / "model.safetensors").is_file()
