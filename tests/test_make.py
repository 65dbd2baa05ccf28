"""What the targets of the Makefile run, from dry runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.bench.command import bench_parser
from common.files import repository_root, write_json
from lxrt.adaptive import PROGRAM as ADAPTIVE
from vilbert.finetuning import EVALUATE, TRAIN
from vilbert.pretraining import pretrain_parser
from vlbert.config import load_config
from vlbert.options import train_parser
from vlbert.testing import parser as prediction_parser

ROOT = repository_root()
HOME = ROOT / "VLBERT"
# Also what a surrounding `make test` hands on.
VARIABLES = (
    "STRATEGY",
    "NAME",
    "DATASET",
    "CFG",
    "NPROC",
    "GPU",
    "ARGS",
    "QUICK",
    "DEVICE",
    "PART",
    "RUN",
    "SIZE",
    "MAKEFLAGS",
    "MFLAGS",
    "MAKELEVEL",
    "MAKEOVERRIDES",
)


def dry_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    return subprocess.run(
        ["make", "--no-print-directory", "-n", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def words(*arguments: str) -> list[str]:
    """The words of the last command of a target."""
    found = dry_run(*arguments)
    assert found.returncode == 0, found.stderr
    return shlex.split(found.stdout.replace("\\\n", " ").strip().splitlines()[-1])


def trained(*variables: str):
    """(launch words, parsed flags) of `make vlbert-train`."""
    found = words("vlbert-train", *variables)
    place = found.index("vqa/train_end2end.py")
    launch, (script, config, folder, *flags) = found[:place], found[place:]
    assert found[:2] == ["cd", "VLBERT"] and (HOME / script).is_file()
    launcher = next(word for word in launch if word.startswith("scripts/"))
    assert (HOME / launcher).is_file()
    given = train_parser(script, None).parse_args(["--cfg", config, "--model-dir", folder, *flags])
    return launch, given


def test_the_help_has_every_target():
    text = (
        dry_run("help").stdout
        + subprocess.run(
            ["make", "--no-print-directory", "help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z][a-z-]+):", makefile, re.MULTILINE)
    assert {"vlbert-train", "vlbert-test", "vilbert-train", "vilbert-table"} <= set(targets)
    assert all(re.search(rf"^  {target} +\S", text, re.MULTILINE) for target in targets)
    for variable in ("CFG", "NPROC", "DATASET", "STRATEGY"):
        assert variable in text


def test_the_page_shows_the_runs_that_are_named():
    from common.web.command import parser

    found = words("web", "RUN=a/b c", "ARGS=--port 0 --detector pixels")
    assert found[1:3] == ["-m", "common.web"]
    given = parser().parse_args(found[3:])
    assert given.run == [Path("a/b"), Path("c")]
    assert (given.port, given.detector, given.host) == (0, "pixels", "127.0.0.1")
    assert words("web", "RUN=")[1:] == ["-m", "common.web"]


@pytest.mark.parametrize(
    ("dataset", "of_config"),
    [
        ("", "easy_vqa"),
        ("easy_vqa", "easy_vqa"),
        ("easy_vqa_cp", "easy_vqa_cp"),
        ("easy_vqa_dialect", "easy_vqa_dialect"),
        ("vqa", "vqa"),
        ("vqa_cp", "vqa_cp"),
    ],
)
def test_a_data_set_chooses_a_config_of_it(dataset, of_config):
    _, given = trained(f"DATASET={dataset}")
    assert of_config == load_config(HOME / given.cfg).DATASET.DATASET
    assert (given.strategy, given.name, given.gpus) == ("SpotTune_Block", "SpotTune_Block", "0")


def test_strategy_name_and_further_flags_reach_the_script():
    _, given = trained("STRATEGY=BlockDrop", "GPU=cpu", "ARGS=--questions 100 --quiet")
    assert (given.strategy, given.name, given.gpus) == ("BlockDrop", "BlockDrop", "cpu")
    assert given.questions == 100 and given.quiet


def test_a_config_keeps_its_strategy_and_name_unless_others_are_given():
    for cfg in ("cfgs/easy_vqa/blockdrop.yaml", "VLBERT/cfgs/easy_vqa/blockdrop.yaml"):
        _, given = trained(f"CFG={cfg}", "DATASET=vqa")
        assert (HOME / given.cfg) == HOME / "cfgs/easy_vqa/blockdrop.yaml"
        assert given.strategy is None and given.name is None
    _, given = trained("CFG=cfgs/easy_vqa/blockdrop.yaml", "NAME=x")
    assert given.strategy is None and given.name == "x"
    _, given = trained("CFG=cfgs/easy_vqa/base.yaml", "STRATEGY=SpotTune")
    assert (given.strategy, given.name) == ("SpotTune", "SpotTune")


def test_several_processes_have_a_device_each():
    launch, given = trained("NPROC=3")
    assert launch[-2:] == ["scripts/dist_run_single.sh", "3"] and given.gpus is None
    launch, given = trained("NPROC=1")
    assert launch[-1] == "scripts/nondist_run.sh" and given.gpus == "0"


@pytest.mark.parametrize(("variables", "size"), [((), "small"), (("SIZE=base",), "base")])
def test_a_data_set_of_ones_own_is_known_by_its_folder(tmp_path, variables, size):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "data" / "shapes").mkdir(parents=True)
    record = {"name": "shapes", "size": "small", "arguments": {"size": "base"}}
    write_json(tmp_path / "data" / "shapes" / "dataset.json", record, indent=1)
    for target in ("vlbert-train", "vlbert-test", "lxmert-train", "vilbert-train"):
        more = variables if target.startswith("vlbert") else ()
        found = words("-C", str(tmp_path), target, "DATASET=shapes", *more)
        assert found[found.index("--dataset") + 1] == "shapes"
        assert (f"cfgs/own/{size}.yaml" in found) == target.startswith("vlbert")
    assert "VL-BERT has" in dry_run("-C", str(tmp_path), "vlbert-train", "DATASET=moon").stderr


@pytest.mark.parametrize("target", ["vlbert-train", "vlbert-test"])
def test_an_unknown_data_set_is_refused_with_the_known_ones(target):
    found = dry_run(target, "DATASET=moon")
    assert found.returncode != 0
    assert (
        "DATASET=moon: VL-BERT has easy_vqa, easy_vqa_cp, easy_vqa_dialect, vqa, vqa_cp"
        in found.stderr
    )


def test_testing_asks_for_the_run_that_training_makes():
    for variables in ((), ("DATASET=easy_vqa_cp", "NAME=x"), ("CFG=cfgs/easy_vqa/last_2.yaml",)):
        _, run = trained(*variables)
        found = words("vlbert-test", *variables)
        assert (HOME / "vqa/test.py").is_file() and "vqa/test.py" in found
        given = prediction_parser().parse_args(found[found.index("vqa/test.py") + 1 :])
        assert (given.cfg, given.name, given.model_dir) == (run.cfg, run.name, run.model_dir)


def test_parity_bench_compare_and_pretraining_cover_all_backbones():
    said = {target: dry_run(target).stdout for target in ("parity", "bench", "compare")}
    assert all(f"--backbone {name}" in said["parity"] for name in ("lxmert", "vlbert", "vilbert"))
    assert "common.bench" in said["bench"] and "--backbone" not in said["bench"]
    assert "LXMERT/snap/vqa VLBERT/output/vl-bert ViLBERT/save" in said["compare"]
    found = words("pretrain-easy-vqa-vlbert")
    script, config = found[found.index("pretrain/train_end2end.py") :][:2]
    assert (HOME / config).is_file() and script.startswith("pretrain/")
    assert found[found.index("--export") + 1] == "pretrained/easy_vqa_small"
    found = words("pretrain-easy-vqa-vilbert", "GPU=cpu")
    flags = found[found.index("pretrain_easy_vqa.py") + 1 :]
    given = pretrain_parser().parse_args(flags)
    assert str(given.export) == "pretrained/easy_vqa_small" and given.gpus == "cpu"


def test_the_bench_of_a_gpu_installs_nothing_and_names_its_parts():
    given = ("DEVICE=cuda", "PYTHON=python3", "QUICK=1", "PART=plain,block", "ARGS=--minutes 3")
    found = dry_run("bench", *given)
    assert found.returncode == 0 and "pip" not in found.stdout and "venv" not in found.stdout
    path, python, _, module, *flags = words("bench", *given)
    assert path == "PYTHONPATH=.:LXMERT/src:VLBERT:ViLBERT"
    assert (python, module) == ("python3", "common.bench")
    options = bench_parser().parse_args(flags)
    assert (options.device, options.quick, options.minutes) == ("cuda", True, 3)
    assert options.parts == ["plain", "block"]


def vilbert_flags(target: str, script: str, *variables: str) -> list[str]:
    """The flags that a target gives to a script of ViLBERT."""
    found = words(target, *variables)
    assert found[:2] == ["cd", "ViLBERT"] and (ROOT / "ViLBERT" / script).is_file()
    return found[found.index(script) + 1 :]


@pytest.mark.parametrize(
    ("variables", "name", "flags"),
    [
        ([], "adaptive", {"adapt_span_enabled": True}),
        (["FLAGS=--sparse --layerdrop", "ARGS=--bs 8"], "sparse_layerdrop", {"batch_size": 8}),
        (["NAME=mine", "SIZE=small", "GPU=cpu"], "mine", {"size": "small", "gpus": "cpu"}),
    ],
)
def test_adaptive_lxmert_is_trained_by_its_own_script(variables, name, flags):
    found = words("lxmert-adaptive", *variables)
    place = found.index("train.py")
    assert found[:2] == ["cd", "LXMERT"] and (ROOT / "LXMERT" / "train.py").is_file()
    given = ADAPTIVE.parser().parse_args(found[place + 1 :])
    assert flags.items() <= vars(given).items()
    assert ADAPTIVE.options(given, "").run.folder == Path("snap/adaptive") / name


def test_vilbert_is_trained_and_tested_under_one_name():
    for variables in ((), ("DATASET=easy_vqa_cp", "NAME=x", "GPU=cpu", "ARGS=--quiet")):
        flags = vilbert_flags("vilbert-train", "train_tasks.py", *variables)
        run = TRAIN.options(TRAIN.parser().parse_args(flags), "")
        flags = vilbert_flags("vilbert-test", "eval_tasks.py", *variables)
        test = EVALUATE.options(EVALUATE.parser().parse_args(flags), "")
        assert test.load == str(run.run.folder / "BEST")
        assert (test.data.dataset, test.gpus) == (run.data.dataset, run.gpus)
        assert run.model.strategy == "SpotTune_Block"
    flags = words("vilbert-train", "NPROC=3")
    assert "--nproc_per_node=3" in flags and "--gpus" not in flags


def test_the_checks_of_ci_are_those_of_lint_and_then_the_tests():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make ")] == [
        "make lint",
        "make test ARGS=\"-m 'not slow and not web'\"",
        "make test-web",
    ]
    said = dry_run("lint").stdout
    checks = ("ruff format --check .", "ruff check .", "-m mypy", "/lint-imports")
    places = [said.index(check) for check in checks]
    assert places == sorted(places)
    assert "pytest" not in said and "lint-imports" not in dry_run("test").stdout


def test_every_target_is_phony():
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    targets = re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert set(phony.split()) == set(targets)


TABLES = {
    "vlbert": (
        "VLBERT",
        "rows",
        "table",
        "standard_7/train+nominival_train",
        "cfgs/easy_vqa/absent",
    ),
    "vilbert": ("ViLBERT", "vilbert_rows", "vilbert_table", "standard_7", "unknown strategy"),
}


def table_loop(name: str, folder: Path, row: str) -> subprocess.CompletedProcess[str]:
    """What `make NAME-table` does for one row and one seed, before it compares the runs."""
    home, rows, table, *_ = TABLES[name]
    words = (f"{rows}={row}", "SEEDS=7", f"{table}={folder}", "GPU=cpu")
    said = dry_run(f"{name}-table", *words).stdout
    loop = said[said.index(f"cd {home} && for seed") :].rsplit("\n", 2)[0]
    assert "common.compare" not in loop and "xargs" in loop
    loop = re.sub(r"PYTHON=\S+ xargs", f"PYTHON={shlex.quote(sys.executable)} xargs", loop)
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", loop],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", TABLES)
def test_the_table_trains_nothing_when_all_rows_are_there(tmp_path, name):
    folder = tmp_path / TABLES[name][3]
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    done = table_loop(name, tmp_path, "standard")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", TABLES)
def test_the_table_stops_where_a_row_fails(tmp_path, name):
    done = table_loop(name, tmp_path, "absent")
    assert done.returncode != 0
    assert done.stdout == "== absent, seed 7\n"
    assert "error: " in done.stderr and TABLES[name][4] in done.stderr


@pytest.mark.long
def test_a_row_of_the_vilbert_table_may_say_how_its_policy_is_trained(tmp_path):
    done = table_loop("vilbert", tmp_path, "absent/started")
    assert done.stdout == "== absent, seed 7\n" and "unknown strategy" in done.stderr
    assert not list(tmp_path.iterdir())
    (tmp_path / "SpotTune_started_7").mkdir()
    (tmp_path / "SpotTune_started_7" / "result.json").write_text("{}")
    done = table_loop("vilbert", tmp_path, "SpotTune/started")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = table_loop("vilbert", tmp_path, "standard/started")
    assert "strategy standard decides nothing" in done.stderr, "the flag is given"
