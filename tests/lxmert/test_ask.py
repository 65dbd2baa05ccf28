"""`python -m common.ask`: what it answers, shows, writes and refuses."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from common.ask.answerer import Answerer
from common.ask.answering import ask, make_batch, question_notes
from common.ask.command import main
from common.ask.image import find_image
from common.ask.picture import box_label, draw_answer
from common.ask.report import nothing_decided, title
from common.data.easy_vqa.build import DETECTOR
from common.data.tokenizer import MAX_TOKENS
from common.detector.command import main as extract
from common.detector.faster_rcnn import DetectorOptions, FasterRCNNDetector
from common.detector.pixels import PixelDetector
from common.errors import CheckpointError, DataError
from common.features.command import main as import_features
from common.features.sources import FeatureSources
from common.features.store import RegionFeatures, Regions
from common.files import repository_root
from common.runs.backbones import OpenedRun
from common.runs.opened_run import open_run
from common.training.checkpoint import load_checkpoint, load_meta, save_checkpoint
from lxrt.building import build_vqa
from lxrt.finetuning import PROGRAM
from lxrt.finetuning import main as lxmert
from tests.common.detector.files import picture as photograph
from tests.common.detector.files import write_detector, write_pictures
from tests.common.own_detector import check_asked, check_commands
from tests.lxmert.runs import small_run, strict_json

IMAGE = "EASY_test_000000004003"
QUESTION = "What color is the shape?"
MakeRun, Ask = Callable[..., Path], Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def finetuned(vqa_data: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of SpotTune_Res (whose plan has dead decisions) by the command that users type."""
    out = tmp_path_factory.mktemp("ask") / "res"
    assert (
        lxmert(
            [
                *small_run(vqa_data, pretrained),
                "--strategy",
                "SpotTune_Res",
                "--policy-init",
                "0.6",
                "--output",
                str(out),
            ]
        )
        == 0
    )
    return out


@pytest.fixture(scope="module")
def make_run(
    vqa_data: Path, pretrained: Path, answers: list[str], tmp_path_factory: pytest.TempPathFactory
) -> MakeRun:
    """Builds a model from flags and saves it as a run does, without training it."""

    def make(*flags: str, features: dict[str, Any] | None = None) -> Path:
        folder = tmp_path_factory.mktemp("built")
        words = small_run(vqa_data, pretrained)
        if features is not None:  # which the pretrained weights may not read
            place = words.index("--loadLXMERTQA")
            words[place : place + 2] = ["--fromScratch", "--bert", str(pretrained.parent)]
        options = PROGRAM.parse([*words, *flags])
        torch.manual_seed(1)
        built = build_vqa(
            options.model,
            options.base.adaptive,
            "vqa",
            answers,
            features or {"width": 2048, "detector": DETECTOR},
            vqa_data,
            lambda text: None,
        )
        with torch.no_grad():  # as after training: the twins differ from what they were copied from
            for parameter in built.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn_like(parameter))
        save_checkpoint(
            folder / "BEST.safetensors",
            {"model": dict(built.model.state_dict())},
            built.meta | {"training": {"dataset": "vqa"}},
        )
        (folder / "vocab.txt").write_text(built.tokenizer.text())
        (folder / "answers.json").write_text(json.dumps(answers))
        return folder

    return make


@pytest.fixture
def picture(easy_vqa_root: Path) -> Path:
    return easy_vqa_root / "data" / "easy_vqa" / "images" / "test" / f"{IMAGE}.png"


@pytest.fixture
def store(easy_vqa_root: Path) -> Path:
    return easy_vqa_root / "data" / "easy_vqa" / "features"


@pytest.fixture
def asked(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs the command: exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def refused(asked: Ask) -> Callable[..., str]:
    """The one error of a command that has to fail."""

    def run(*arguments: object) -> str:
        status, _, error = asked(*arguments)
        assert status == 2 and error.startswith("error: ") and error.count("error: ") == 1, error
        return error

    return run


def opened_image(run: OpenedRun, store: Path) -> Regions:
    return find_image(run, None, IMAGE, store).regions


def test_the_best_answer_is_what_the_evaluation_of_the_run_predicts(finetuned, vqa_data, tmp_path):
    shutil.copytree(finetuned, tmp_path / "run")
    assert (
        lxmert(
            [
                "--dataset",
                "vqa",
                "--data",
                str(vqa_data),
                "--size",
                "small",
                "--gpus",
                "cpu",
                "--quiet",
                "--load",
                str(tmp_path / "run" / "BEST"),
                "--test",
                "minival",
                "--output",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    predicted = {
        row["question_id"]: row["answer"]
        for row in strict_json(tmp_path / "run" / "minival_predict.json")
    }
    run = open_run(finetuned)
    rows = json.loads((vqa_data / "vqa" / "minival.json").read_text())[:40]
    store = RegionFeatures.open(vqa_data / "mscoco_imgfeat" / "val2014_obj36")
    given = [ask(run, store.get(row["img_id"]), row["sent"]).answers[0].text for row in rows]
    assert given == [predicted[row["question_id"]] for row in rows]
    assert len(set(given)) > 1, "a model that always says the same would pass"


def test_a_picture_file_and_its_record_of_features_give_the_same_answers(finetuned, picture, store):
    run = open_run(finetuned)
    of_file = ask(run, find_image(run, picture, None).regions, QUESTION, top=13)
    of_record = ask(run, opened_image(run, store), QUESTION, top=13)
    assert [vars(a) for a in of_file.answers] == [vars(a) for a in of_record.answers]
    assert of_file.decisions == of_record.decisions


def test_a_probability_is_the_sigmoid_of_the_logit_in_falling_order(finetuned, store):
    run = open_run(finetuned)
    answers = ask(run, opened_image(run, store), QUESTION, top=99).answers
    assert sorted(answer.text for answer in answers) == sorted(run.answers)
    logits = np.array([answer.logit for answer in answers])
    assert (np.diff(logits) <= 0).all()
    np.testing.assert_allclose(
        [answer.probability for answer in answers], 1 / (1 + np.exp(-logits)), rtol=1e-5
    )


@pytest.mark.parametrize("how", ["argmax", "sample"])
def test_the_decisions_shown_are_those_that_gave_the_answer(finetuned, store, how):
    run = open_run(finetuned)
    run.adaptive.options.policy_eval = how
    regions = opened_image(run, store)
    found = ask(run, regions, QUESTION, top=13, seed=3)
    with torch.no_grad(), run.adaptive.force(torch.tensor(found.decisions.decisions).float()):
        logits = run.model(**run.make_inputs(make_batch(regions, QUESTION)))[0]
    assert_close(
        torch.tensor([answer.logit for answer in found.answers]),
        logits.sort(descending=True).values,
    )
    taken = [int(p > 0.5) for p in found.decisions.probabilities]
    assert (found.decisions.decisions == taken) == (how == "argmax")


def test_drawn_decisions_are_the_same_for_the_same_pair_and_seed(finetuned, store):
    run = open_run(finetuned)
    run.adaptive.options.policy_eval = "sample"
    regions = opened_image(run, store)

    def drawn(**changes):
        return ask(run, regions, QUESTION, **changes).decisions.decisions

    assert drawn(seed=3) == drawn(seed=3)
    assert len({tuple(drawn(seed=seed)) for seed in range(8)}) > 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--strategy", "standard"],
        ["--strategy", "last_2"],
        ["--strategy", "FrozenLayers", "--frozen-layers", "lang.1,3"],
        ["--strategy", "SpotTune_Block"],
        ["--strategy", "SpotTune", "--policy", "published", "--policy-llayers", "1"],
        ["--strategy", "BlockDrop", "--llayers", "1"],
        ["--strategy", "BlockReplace"],
        ["--strategy", "BlockDrop", "--policy", "random:0.3"],
        ["--strategy", "SpotTune_Res", "--policy", "shared"],
    ],
    ids=lambda flags: "-".join(flags[1::2]),
)
def test_a_run_of_any_strategy_is_rebuilt_from_its_folder(make_run, store, flags):
    folder = make_run(*flags)
    run = open_run(folder)
    saved = load_checkpoint(folder / "BEST.safetensors")[0]["model"]
    assert_close(dict(run.model.state_dict()), saved, rtol=0, atol=0)
    assert not run.model.training
    decided = ask(run, opened_image(run, store), QUESTION).decisions
    assert (decided is None) == (not run.strategy.adaptive)


def test_the_answers_come_from_the_folder_else_from_the_data_set_and_are_checked(
    finetuned, vqa_data, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(finetuned, folder)
    answers = json.loads((folder / "answers.json").read_text())
    assert open_run(folder).answers == answers
    (folder / "answers.json").unlink()  # a run from before they were kept
    assert open_run(folder, vqa_data).answers == answers
    (folder / "answers.json").write_text(json.dumps(answers[::-1]))
    with pytest.raises(CheckpointError, match=r"answers.json: has 13 answers which are not the 13"):
        open_run(folder)


def test_text_says_what_was_decided_in_every_layer_and_what_is_dead(
    finetuned, picture, asked, tmp_path
):
    status, out, _ = asked(
        "--run",
        finetuned,
        "--image",
        picture,
        "--question",
        QUESTION,
        "--out",
        tmp_path / "a.png",
        "--json",
        tmp_path / "a.json",
    )
    assert status == 0 and f"question  {QUESTION}" in out
    (entry,) = strict_json(tmp_path / "a.json")["questions"]
    sites = entry["decisions"]["sites"]
    assert sum(not site["live"] for site in sites) == 2
    live = [site for site in sites if site["live"]]
    ones = sum(site["decision"] for site in live)
    assert (
        f"SpotTune_Res, the policy's likelier decision: {ones} of {len(live)} parts finetuned, "
        "2 dead" in out
    )
    for layer in ("lang.1", "vision.2", "cross.2"):
        own = [site for site in live if site["layer"] == layer]
        chosen = [site["component"] for site in own if site["decision"]]
        dead = " (2 dead)" if layer == "cross.2" else ""
        text = f"{layer:8}  {len(chosen)} of {len(own)} finetuned{dead}"
        assert (f"{text}: {', '.join(chosen)}" if chosen else text) in out
    assert all(0 < site["probability"] < 1 for site in sites)
    assert Image.open(tmp_path / "a.png").size[0] == 1280


def test_heads_are_counted_and_whole_layers_are_listed(make_run, picture, asked):
    _, out, _ = asked(
        "--run",
        make_run("--strategy", "SpotTune"),
        "--image",
        picture,
        "--question",
        QUESTION,
        "--no-plots",
        "--json",
        "-",
    )
    sites = json.loads(out)["questions"][0]["decisions"]["sites"]
    heads = [site["decision"] for site in sites if site["name"].startswith("lang.1.head.")]
    _, out, _ = asked(
        "--run",
        make_run("--strategy", "SpotTune"),
        "--image",
        picture,
        "--question",
        QUESTION,
        "--no-plots",
    )
    assert f"heads {sum(heads)}/{len(heads)}" in next(
        line for line in out.splitlines() if line.strip().startswith("lang.1")
    )
    _, out, _ = asked(
        "--run",
        make_run("--strategy", "BlockDrop"),
        "--image",
        picture,
        "--question",
        QUESTION,
        "--no-plots",
    )
    assert out.count("kept 0.") + out.count("skipped 0.") == 6


def test_a_strategy_that_decides_nothing_says_so(make_run, picture, asked, refused):
    run = make_run("--strategy", "Frozen")
    _, out, _ = asked("--run", run, "--image", picture, "--question", QUESTION, "--no-plots")
    assert "decided   nothing: with Frozen, all encoder layers keep their pretrained weights" in out
    assert "decides nothing" in refused(
        "--run", run, "--image", picture, "--question", QUESTION, "--policy-eval", "sample"
    )


def test_the_drawing_has_image_boxes_question_answers_and_decisions(make_run, picture):
    run = open_run(make_run("--strategy", "SpotTune_Block"))
    image = find_image(run, picture, None)
    answered = ask(run, image.regions, QUESTION, top=4)
    figure = draw_answer(image, answered, title(run), nothing_decided(run))
    drawn, bars, cells = figure.axes
    assert len(drawn.images) == 1 and len(drawn.patches) == len(image.regions.boxes) == 7
    box = drawn.patches[-1].get_bbox()  # the first box is drawn last, on top
    assert_close(torch.tensor(box.extents).float(), image.regions.boxes[0])
    texts = [text.get_text() for text in figure.texts]
    assert QUESTION in texts and any("SpotTune_Block · LXMERT (small)" in t for t in texts)
    assert [label.get_text() for label in bars.get_yticklabels()] == [
        answer.text for answer in answered.answers
    ]
    assert_close(
        [bar.get_width() for bar in bars.patches],
        [answer.probability for answer in answered.answers],
    )
    words = [text.get_text().split("\n")[0] for text in cells.texts][1::2]
    assert words == [("frozen", "finetuned")[d] for d in answered.decisions.decisions]


def test_a_record_without_picture_is_drawn_on_a_canvas_of_its_size(
    finetuned, vqa_data, asked, tmp_path
):
    status, out, _ = asked(
        "--run",
        finetuned,
        "--data",
        vqa_data,
        "--image-id",
        IMAGE,
        "--question",
        QUESTION,
        "--out",
        tmp_path,
    )
    assert status == 0 and "64 x 64 pixels, 7 regions" in out
    assert f"no picture of {IMAGE} beside its features" in out
    (made,) = tmp_path.glob("*.png")
    assert made.name == f"{IMAGE}-What-color-is-the-shape.png"


def test_the_picture_of_a_record_is_found_beside_its_features_or_given(
    finetuned, store, picture, tmp_path
):
    run = open_run(finetuned)
    assert find_image(run, None, IMAGE, store).file == picture
    Image.open(picture).resize((128, 128)).save(tmp_path / "copy.jpg")
    assert find_image(run, tmp_path / "copy.jpg", IMAGE, store).picture.size == (128, 128)


def test_a_neighbour_whose_name_begins_alike_is_not_the_picture_and_any_ending_is(
    finetuned, store, picture, tmp_path
):
    (tmp_path / "features").symlink_to(store.resolve())
    (tmp_path / "images").mkdir()
    own = tmp_path / "images" / f"{IMAGE}.webp"
    Image.open(picture).save(own, lossless=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / f"{IMAGE}.edited.png")
    assert find_image(open_run(finetuned), None, IMAGE, tmp_path / "features").file == own


def test_several_questions_and_the_standard_input_are_answered_in_turn(
    finetuned, picture, asked, tmp_path, monkeypatch
):
    monkeypatch.setattr("sys.stdin", io.StringIO("Is it a circle?\n\nIs it blue?\n"))
    status, out, _ = asked(
        "--run",
        finetuned,
        "--image",
        picture,
        "--question",
        QUESTION,
        "--interactive",
        "--out",
        tmp_path / "a.png",
        "--top",
        1,
    )
    lines = [line.split("  ", 1)[1] for line in out.splitlines() if line.startswith("question")]
    assert status == 0 and lines == [QUESTION, "Is it a circle?", "Is it blue?"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-1.png", "a-2.png", "a-3.png"]


def test_json_on_the_standard_output_is_alone_there_and_complete(finetuned, picture, asked):
    _, out, _ = asked(
        "--run",
        finetuned,
        "--image",
        picture,
        "--question",
        QUESTION,
        "--top",
        2,
        "--no-plots",
        "--json",
        "-",
    )
    found = json.loads(out)
    assert found["strategy"] == "SpotTune_Res" and found["image"]["detector"] == DETECTOR
    assert len(found["image"]["boxes"]) == 7 and len(found["questions"][0]["answers"]) == 2
    assert found["questions"][0]["picture"] is None


def test_words_outside_the_vocabulary_and_cut_questions_are_told(finetuned):
    tokenizer = open_run(finetuned).tokenizer
    assert question_notes(tokenizer, QUESTION) == []
    unknown, spelled = question_notes(tokenizer, "What color is the 色 zebra?")
    assert unknown.endswith("read as [UNK]: 色") and "zebra (z ##e ##b ##r ##a)" in spelled
    fits = "color " * (MAX_TOKENS - 2)
    assert question_notes(tokenizer, fits) == []
    (cut,) = question_notes(tokenizer, fits + "shape?")
    assert cut.startswith(f"{MAX_TOKENS} word pieces, the model reads {MAX_TOKENS - 2}")


def test_a_photograph_is_told_that_the_pixel_detector_cannot_see_it(finetuned, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    image = find_image(open_run(finetuned), tmp_path / "photo.png", None)
    assert "it says nothing on photographs" in image.notes[0]


@pytest.fixture
def npz(store: Path, tmp_path: Path) -> Path:
    """The record of one image as NPZ, as another program would hand it over."""
    found = RegionFeatures.open(store).get(IMAGE)
    folder = tmp_path / "npz"
    folder.mkdir()
    np.savez(folder / "mine.npz", features=found.features, boxes=found.boxes, width=64, height=64)
    return folder


def test_features_of_another_detector_are_refused_with_both_names(
    finetuned, npz, refused, tmp_path
):
    assert (
        import_features(
            ["--npz", str(npz), "--out", str(tmp_path / "s"), "--detector", "my detector"]
        )
        == 0
    )
    error = refused(
        "--run",
        finetuned,
        "--features",
        tmp_path / "s",
        "--image-id",
        "mine",
        "--question",
        QUESTION,
    )
    assert "do not belong together" in error and "'my detector', 2048 numbers wide" in error
    assert repr(DETECTOR) in error


def test_own_features_of_the_same_detector_are_answered(finetuned, npz, store, tmp_path):
    assert (
        import_features(["--npz", str(npz), "--out", str(tmp_path / "s"), "--detector", DETECTOR])
        == 0
    )
    run = open_run(finetuned)
    mine = find_image(run, None, "mine", tmp_path / "s")
    known = ask(run, opened_image(run, store), QUESTION)
    assert vars(ask(run, mine.regions, QUESTION).answers[0]) == vars(known.answers[0])


def test_a_run_of_another_detector_refuses_a_bare_picture_and_says_how(
    finetuned, picture, refused, tmp_path
):
    shutil.copytree(finetuned, tmp_path / "run")
    state, meta = load_checkpoint(finetuned / "BEST.safetensors")
    meta["features"]["detector"] = "Faster R-CNN"
    save_checkpoint(tmp_path / "run" / "BEST.safetensors", {"model": state["model"]}, meta)
    error = refused("--run", tmp_path / "run", "--image", picture, "--question", QUESTION)
    for part in ("'Faster R-CNN', 2048", "common.features", "--features STORE --image-id ID"):
        assert part in error


def test_a_missing_run_and_one_without_best_are_refused(finetuned, refused, tmp_path):
    question = ("--image", "x.png", "--question", QUESTION)
    assert "is no folder" in refused("--run", tmp_path / "none", *question)
    error = refused("--run", finetuned.parent, *question)
    assert "is not the folder of a run; it holds the runs res" in error
    shutil.copy(finetuned / "LAST.safetensors", tmp_path)
    assert "has not finished its first epoch" in refused("--run", tmp_path, *question)


def test_pictures_that_cannot_be_used_are_named_with_the_reason(
    finetuned, picture, refused, tmp_path
):
    def error(name: str) -> str:
        return refused("--run", finetuned, "--image", tmp_path / name, "--question", QUESTION)

    assert "none.png: no such file" in error("none.png")
    (tmp_path / "text.png").write_text("no picture")
    assert "text.png: not a picture" in error("text.png")
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:300])
    assert "cut.png: the picture cannot be read" in error("cut.png")
    Image.new("RGB", (8, 64)).save(tmp_path / "thin.png")
    assert "8 x 64 pixels: the pixel detector needs 16 to 2048" in error("thin.png")


@pytest.mark.parametrize(
    ("image_id", "nearest"),
    [("4003", IMAGE), ("EASY_tset_000000004003", IMAGE), ("?", "the first ones: EASY_train_")],
)
def test_an_unknown_image_id_shows_the_nearest(finetuned, store, refused, image_id, nearest):
    error = refused(
        "--run", finetuned, "--features", store, "--image-id", image_id, "--question", QUESTION
    )
    assert f"no image {image_id!r}" in error and nearest in error


def test_another_picture_than_that_of_the_record_is_refused(finetuned, store, refused, tmp_path):
    Image.new("RGB", (200, 150)).save(tmp_path / "wide.png")
    error = refused(
        "--run",
        finetuned,
        "--features",
        store,
        "--image-id",
        IMAGE,
        "--image",
        tmp_path / "wide.png",
        "--question",
        QUESTION,
    )
    assert "200 x 150" in error and "64 x 64" in error and "not the same picture" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--question", " "], "is empty"),
        (["--question", "What \udc80 color?"], "no Unicode text"),
        (["--image-id", "EASY_\ud83d", "--question", QUESTION], "no Unicode text"),
        (["--question", "a", "--top", "0"], "--top 0"),
        (["--question", "a", "--out", "a.jpg"], "ends in .png"),
        (
            ["--question", "a", "--policy-eval", "global"],
            "holds no decisions for the whole data set",
        ),
        (["--question", "a", "--features", "s"], "say which image of it with --image-id"),
    ],
)
def test_flags_that_make_no_sense_are_refused(finetuned, refused, flags, message):
    assert message in refused("--run", finetuned, *flags)


def test_no_question_at_all_is_refused(finetuned, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--run", str(finetuned), "--image", "x.png"])
    assert stop.value.code == 2 and "--interactive" in capsys.readouterr().err


def test_a_picture_is_asked_about_by_the_detector_of_the_run(finetuned, tmp_path):
    check_asked(finetuned, QUESTION, tmp_path)


def test_weights_of_another_detector_are_refused_or_taken(
    finetuned, vqa_data, pretrained, tmp_path, capsys
):
    """In a test; and at the start of a run, from weights that remember their features."""
    shutil.copytree(finetuned, tmp_path / "run")
    best = tmp_path / "run" / "BEST.safetensors"
    run = small_run(vqa_data, pretrained)
    test = [*run[: run.index("--loadLXMERTQA")], "--quiet", "--output", str(tmp_path / "out")]
    check_commands(lxmert, [*test, "--load", str(best), "--test", "minival"], best, capsys)
    start = tmp_path / "P_LXRT.safetensors"
    state, meta = load_checkpoint(f"{pretrained}_LXRT.safetensors")
    save_checkpoint(start, state, meta | {"features": load_meta(best)["features"]})
    shutil.copy(pretrained.parent / "vocab.txt", tmp_path)
    words = [*small_run(vqa_data, tmp_path / "P"), "--output", str(tmp_path / "new"), "--overwrite"]
    check_commands(lxmert, words, start, capsys)


@pytest.fixture(scope="module")
def frcnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Faster R-CNN, with names."""
    folder = write_detector(tmp_path_factory.mktemp("frcnn") / "files")
    (folder / "objects_vocab.txt").write_text("\n".join(f"object{n},thing{n}" for n in range(40)))
    return folder


def session(monkeypatch: pytest.MonkeyPatch, lines: Sequence[str], typed: bool = False) -> None:
    stream = io.StringIO("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(stream, "isatty", lambda: typed)
    monkeypatch.setattr("sys.stdin", stream)


def counted(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> list[object]:
    """Calls of a method, which goes on working."""
    calls: list[object] = []
    own = getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda *given: (calls.append(given), own(*given))[1])
    return calls


def test_a_photograph_is_answered_in_one_step_as_its_extracted_features_are(
    make_run, frcnn, asked, tmp_path, monkeypatch
):
    """With the boxes that the run was trained with; one look serves several questions."""
    photos = write_pictures(tmp_path / "photos", 2)
    given = ["--images", str(photos), "--detector", str(frcnn), "--out", str(tmp_path / "s")]
    assert extract([*given, "--boxes", "4-5", "--quiet"]) == 0
    store = RegionFeatures.open(tmp_path / "s")
    run = make_run(features=FeatureSources([store]).described())
    words = ["--run", run, "--no-plots", "--json", "-"]
    record = (*words, "--features", tmp_path / "s", "--image-id", "picture_01")
    looks = counted(monkeypatch, FasterRCNNDetector, "detect")
    photo = (*words, "--detector", frcnn, "--image", photos / "picture_01.png")
    asking = ("--question", QUESTION, "--question", "Is it a circle?")
    status, out, error = asked(*photo, *asking)
    assert status == 0, error
    found, kept = json.loads(out), json.loads(asked(*record, *asking)[1])
    assert len(looks) == 1 and len(found["questions"]) == 2
    assert [q["answers"] for q in found["questions"]] == [q["answers"] for q in kept["questions"]]
    first = found["image"]["boxes"][0]
    assert (
        4 <= len(found["image"]["boxes"]) <= 5 and first["box"] == kept["image"]["boxes"][0]["box"]
    )
    assert first["object"] == f"object{first['object_ids']}" and first["attribute"] is None
    readme = (repository_root() / "common/README.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", readme, re.S) if "Answerer" in b)
    own = {
        "LXMERT/snap/vqa/v1": run,
        "photo.jpg": photos / "picture_01.png",
        '"frcnn"': f'"{frcnn}"',
    }
    for name, path in own.items():
        block = block.replace(name, str(path))
    known: dict[str, Any] = {}
    exec(block, known)
    again = known["answerer"].ask(known["image"], QUESTION)
    assert [vars(a) for a in again.answers] == found["questions"][0]["answers"]
    error = asked(*words, "--detector", "pixels", "--image", photos / "picture_01.png", *asking)[2]
    assert "nothing to set" in error, "the run's boxes are not those of the pixel detector"


def test_regions_are_drawn_under_the_names_of_their_detector(frcnn):
    detector = FasterRCNNDetector.open(frcnn, DetectorOptions())
    shown = photograph(1)
    found = detector.detect(shown)
    given = {name: getattr(found, name) for name in ("boxes", "object_ids", "object_conf")}
    regions = Regions("p", *shown.size, found.features, **given)
    expected = f"1  object{int(found.object_ids[0])} ({float(found.object_conf[0]):.2f})"
    assert box_label(regions, 0, detector.names) == expected
    assert box_label(regions, 0) == expected.replace("object", "object ")
    (frcnn / "attributes_vocab.txt").write_text("red\n")
    with pytest.raises(DataError, match="attributes_vocab.txt: 1 lines, the detector has 12 ids"):
        FasterRCNNDetector.open(frcnn, DetectorOptions())
    (frcnn / "attributes_vocab.txt").unlink()


def test_a_session_goes_on_after_errors_and_changes_the_picture(
    finetuned, picture, asked, tmp_path, monkeypatch
):
    other = tmp_path / "other picture.png"
    Image.new("RGB", (40, 30), "navy").save(other)
    (tmp_path / "text.png").write_text("no picture")
    lines = (":help", QUESTION, f":image {picture}", QUESTION, f":image {tmp_path / 'none.png'}")
    lines += (f":image {tmp_path / 'text.png'}", ":imag x", "Is it blue?", f":image {other}")
    session(monkeypatch, (*lines, QUESTION, "Is it blue?"))
    opened = counted(monkeypatch, Answerer, "__init__")
    looks = counted(monkeypatch, PixelDetector, "detect")
    status, out, error = asked("--run", finetuned, "--interactive", "--json", "-", "--no-plots")
    assert status == 2 and ":image PATH" in error, "something failed, and the help was shown"
    errors = [line for line in error.splitlines() if line.startswith("error: ")]
    said = (
        "no picture",
        "none.png: no such file",
        "text.png: not a picture",
        "':imag x' is not",
        "no picture",  # a question is never answered about the picture before
    )
    assert len(errors) == 5 and all(a in b for a, b in zip(said, errors, strict=True))
    found = json.loads(out)
    asked_of = [(Path(entry["image"]).name, entry["question"]) for entry in found["questions"]]
    assert asked_of == [
        (picture.name, QUESTION),
        *((other.name, q) for q in (QUESTION, "Is it blue?")),
    ]
    assert len(opened) == 1 and len(looks) == 2, "once a picture"
    assert [image["width"] for image in found["images"]] == [64, 40]


def test_an_empty_line_ends_a_session_on_a_terminal(finetuned, picture, asked, monkeypatch):
    session(monkeypatch, (QUESTION, "", "Is it blue?"), typed=True)
    words = ("--run", finetuned, "--image", picture, "--interactive", "--no-plots")
    status, out, error = asked(*words)
    assert status == 0 and out.count("question  ") == 1 and error.count("empty line: end") == 2


def test_the_average_of_the_run_stands_beside_the_decisions_of_a_pair(finetuned, store):
    answerer = Answerer(open_run(finetuned))
    found = answerer.ask(answerer.find(None, IMAGE, store), QUESTION).decisions
    result = strict_json(finetuned / "result.json")["decisions"]
    assert answerer.average_decisions["names"] == found.names
    assert found.average == result["share"] and all(0 <= share <= 1 for share in found.average)
