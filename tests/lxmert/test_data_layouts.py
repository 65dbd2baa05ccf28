"""LXMERT's VQA command on every layout of data, with small files in the real format."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.data.annotations import Example
from common.data.datasets import load_split, resolve_dataset
from common.data.vqa_metric import score
from common.features.store import RegionFeatures
from common.files import repository_root
from lxrt.finetuning import PROGRAM, main
from tests.common.data_files import npz_of, tsv_of, write_json, write_official, write_tsv
from tests.lxmert.runs import refused, small_run, strict_json

PARTS = ("train2014", "val2014")


def coco(part: str, image: int) -> str:
    return f"COCO_{part}_{image:012d}"


def features(root: Path, keys: dict[str, dict[str, str]], source: Path) -> Path:
    """TSVs of COCO parts; `keys` gives part -> image id -> id in the store of easy-VQA."""
    store = RegionFeatures.open(source / "easy_vqa" / "features")
    for part, of in keys.items():
        tsv_of(store, of, root / "mscoco_imgfeat" / f"{part}_obj36.tsv")
    return root


def entries(path: Path, key: str | None = None, images: int | None = None) -> list[dict[str, Any]]:
    """Entries of an official file, about the first so many images."""
    found = json.loads(path.read_text())
    found = found if key is None else found[key]
    chosen = list(dict.fromkeys(entry["image_id"] for entry in found))[:images]
    return [entry for entry in found if entry["image_id"] in set(chosen)]


@pytest.fixture(scope="module")
def official_data(easy_vqa_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """easy-VQA in the files of visualqa.org: train2014, val2014 and test-dev2015."""
    root, source = tmp_path_factory.mktemp("official"), easy_vqa_root / "data"
    keys: dict[str, dict[str, str]] = {}
    for part, split, side in (("train2014", "train", "train"), ("val2014", "minival", "test")):
        name = source / "easy_vqa" / f"v2_OpenEnded_easy_vqa_{split}_questions.json"
        asked = entries(name, "questions", 25)
        answers = source / "easy_vqa" / f"v2_easy_vqa_{split}_annotations.json"
        write_official(root / "vqa", part, asked, entries(answers, "annotations", 25))
        images = {entry["image_id"] for entry in asked}
        keys[part] = {coco(part, i): f"EASY_{side}_{i:012d}" for i in images}
        if part == "val2014":
            for test in ("test2015", "test-dev2015"):
                write_official(root / "vqa", test, asked[:20], None)
            keys["test2015"] = {coco("test2015", i): f"EASY_test_{i:012d}" for i in images}
    return features(root, keys, source)


@pytest.fixture(scope="module")
def cp_data(easy_vqa_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """easy_vqa_cp in the files of VQA-CP v2; both sides have images of both COCO parts."""
    root, source = tmp_path_factory.mktemp("cp"), easy_vqa_root / "data"
    keys: dict[str, dict[str, str]] = {part: {} for part in PARTS}
    for side in ("train", "test"):
        for kind in ("questions", "annotations"):
            path = source / "easy_vqa_cp" / f"easy_vqa_cp_{side}_{kind}.json"
            found = entries(path, images=30)
            for entry in found:
                part, image = PARTS[entry["image_id"] % 2], entry["image_id"]
                entry["coco_split"] = part
                keys[part][coco(part, image)] = f"EASY_train_{image:012d}"
            write_json(
                root / "vqa" / f"vqacp_v2_{side}_{kind}.json",
                found if kind == "questions" else found[::-1],
            )
    return features(root, keys, source)


@pytest.fixture
def npz_data(vqa_data: Path, easy_vqa_root: Path, tmp_path: Path) -> Path:
    """LXMERT's JSON with a folder of NPZ files in the place of each store."""
    shutil.copytree(vqa_data / "vqa", tmp_path / "npz" / "vqa")
    store = RegionFeatures.open(easy_vqa_root / "data" / "easy_vqa" / "features")
    for part, splits in (("train2014", ("train",)), ("val2014", ("nominival", "minival"))):
        rows = [r for s in splits for r in json.loads((vqa_data / "vqa" / f"{s}.json").read_text())]
        keys = {row["img_id"]: row["img_id"] for row in rows}
        npz_of(store, keys, tmp_path / "npz" / "mscoco_imgfeat" / f"{part}_obj36")
    return tmp_path / "npz"


def flags(root: Path, pretrained: Path, dataset: str, out: Path, *more: str) -> list[str]:
    """A run of two steps, which is then reported."""
    return [
        *small_run(root, pretrained),
        "--dataset",
        dataset,
        "--max-steps",
        "2",
        "--questions",
        "32",
        "--output",
        str(out),
        *more,
    ]


def finetuned(arguments: list[str], out: Path) -> dict[str, Any]:
    """Run the command for its one epoch of two steps; content of result.json."""
    arguments = [word for word in arguments if word != "--max-steps"]
    arguments.remove("2")
    assert main(arguments) == 0
    return strict_json(out / "result.json")


def predicted(file: Path, examples: list[Example]) -> float:
    """Official accuracy of a file of predictions."""
    predictions = {row["question_id"]: row["answer"] for row in strict_json(file)}
    return score(predictions, examples)["overall"]


def test_official_files_train_report_and_predict(
    official_data: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    result = finetuned(flags(official_data, pretrained, "vqa_official", out), out)
    shown = capsys.readouterr().out
    assert result["dataset"] == "vqa_official" and shown.count("obj36.tsv (once)") == 2
    dataset = resolve_dataset("vqa_official", data_root=official_data)
    minival = load_split(dataset, "minival")
    assert f"held-out and {len(minival)} validation questions" in shown
    assert strict_json(out / "answers.json") == dataset.vocabulary().answers
    test = [*flags(official_data, pretrained, "vqa_official", out), "--load", str(out / "BEST")]
    assert main([*test, "--test", "minival"]) == 0
    accuracy = predicted(out / "minival_predict.json", minival)
    assert accuracy == pytest.approx(result["accuracy"]["val"]["overall"])
    assert main([*test, "--test", "test-dev"]) == 0
    assert len(strict_json(out / "test-dev_predict.json")) == 20


def test_vqa_cp_trains_on_its_training_side_and_reports_its_test_side(
    cp_data: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    result = finetuned(flags(cp_data, pretrained, "vqa_cp", out), out)
    shown = capsys.readouterr().out
    dataset = resolve_dataset("vqa_cp", data_root=cp_data)
    examples = {name: load_split(dataset, name) for name in ("train", "test")}
    assert {e.image_id.split("_")[1] for e in examples["train"]} == set(PARTS)
    assert f"and {len(examples['test'])} validation questions" in shown
    assert "vqacp_v2_train_annotations.json" in shown and "vqacp_v2_test" not in shown
    assert result["selection"] and "test" not in str(result["selection"])
    test = [*flags(cp_data, pretrained, "vqa_cp", out), "--load", str(out / "BEST"), "--test"]
    for name in ("test", "minival"):
        assert main([*test, name]) == 0
    accuracy = predicted(out / "test_predict.json", examples["test"])
    assert accuracy == pytest.approx(result["accuracy"]["val"]["overall"])
    assert not (out / "minival_predict.json").exists(), "names with `val` mean what is reported"


@pytest.mark.parametrize("train", ["test", "train,test"])
def test_vqa_cp_is_never_trained_on_its_test_side(
    cp_data: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], train: str
) -> None:
    run = flags(cp_data, pretrained, "vqa_cp", tmp_path / "run", "--train", train)
    assert "split test of vqa_cp is there to report on" in refused(capsys, *run)
    assert "train" in refused(capsys, *run, "--valid", "train")


def test_question_that_is_trained_on_is_not_reported(
    official_data: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = flags(official_data, pretrained, "vqa_official", tmp_path / "run")
    shown = refused(capsys, *run, "--train", "train,val", "--valid", "minival")
    assert "are both trained on and reported" in shown


def test_npz_folders_are_imported_on_first_use(
    npz_data: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    finetuned(flags(npz_data, pretrained, "vqa", out), out)
    shown = capsys.readouterr()
    assert shown.out.count("importing the NPZ files of") == 2 and "it/s" not in shown.err
    assert (npz_data / "mscoco_imgfeat" / "val2014_obj36_features" / "meta.json").is_file()
    tsv = npz_data / "mscoco_imgfeat" / "val2014_obj36.tsv"
    shutil.rmtree(npz_data / "mscoco_imgfeat" / "val2014_obj36_features")
    write_tsv(tsv, [])
    run = flags(npz_data, pretrained, "vqa", tmp_path / "again")
    assert "are both there: move one of them away" in refused(capsys, *run)


def test_features_of_another_detector_are_refused(
    npz_data: Path,
    vqa_data: Path,
    official_data: Path,
    pretrained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    finetuned(flags(npz_data, pretrained, "vqa", out), out)
    test = flags(vqa_data, pretrained, "vqa", tmp_path / "t", "--load", str(out / "BEST"))
    shown = refused(capsys, *test, "--test", "minival")
    assert "features.detector is 'as in the NPZ files' in the file, this run has 'pixels" in shown


def test_bad_rows_stop_the_command_or_are_left_out_with_their_questions(
    official_data: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(official_data, root)
    tsv = root / "mscoco_imgfeat" / "val2014_obj36.tsv"
    shutil.rmtree(tsv.with_suffix(""), ignore_errors=True)
    lines = tsv.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"=", b"", 1)
    tsv.write_bytes(b"".join(lines))
    run = flags(root, pretrained, "vqa_official", tmp_path / "run", "--train", "train")
    shown = refused(capsys, *run)
    assert f"{tsv}: row 3" in shown and "--skip-bad" in shown
    result = finetuned([*run, "--skip-bad"], tmp_path / "run")
    shown = capsys.readouterr().out
    assert "skipped 1 bad rows of 25" in shown and "questions are left out" in shown
    assert result["accuracy"]["val"]["overall"] is not None
    assert "row\timage" in (tsv.parent / "val2014_obj36_skipped.txt").read_text()
    again = flags(root, pretrained, "vqa_official", tmp_path / "b", "--train", "train")
    assert "no region features of image" in refused(capsys, *again)


@pytest.mark.parametrize("name", ["vqa", "vqa_official", "vqa_cp"])
def test_empty_folder_names_what_to_fetch_and_what_to_use_instead(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "empty").mkdir()
    shown = refused(capsys, *flags(tmp_path / "empty", pretrained, name, tmp_path / "run"))
    instead = "easy_vqa_cp" if name == "vqa_cp" else "easy_vqa"
    assert "mscoco_imgfeat/train2014_obj36.tsv" in shown and f"--dataset {instead}" in shown


def test_tiny_and_fast_are_512_and_5000_images() -> None:
    parsed = {flag: PROGRAM.parse(flag.split()) for flag in ("--tiny", "--fast", "")}
    limits = {flag: options.data.image_limit for flag, options in parsed.items()}
    assert limits == {"--tiny": 512, "--fast": 5000, "": None}


@pytest.mark.slow
def test_run_script_takes_the_splits_of_the_data_set(cp_data: Path, pretrained: Path) -> None:
    folder = repository_root() / "LXMERT" / "snap" / "vqa" / "layout_test"
    more = ["--dataset", "vqa_cp", "--tiny", "--questions", "16", "--epochs", "1", "--overwrite"]
    words = [word for word in small_run(cp_data, pretrained) if word not in ("--gpus", "cpu")]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_WAIT_POLICY": "passive"}
    try:
        found = subprocess.run(
            ["bash", "run/vqa_finetune.bash", "cpu", folder.name, *words, *more],
            text=True,
            cwd=repository_root() / "LXMERT",
            env=environment,
            capture_output=True,
            check=False,
        )
        assert found.returncode == 0, found.stdout + found.stderr
        assert strict_json(folder / "result.json")["dataset"] == "vqa_cp"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
