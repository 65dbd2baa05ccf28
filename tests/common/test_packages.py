"""The packages keep their direction: contracts, circles, names of backbones, what a start loads."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import entry_points
from pathlib import Path

import grimp
import pytest

from common.files import repository_root

ROOT = repository_root()
OURS = ("common", "lxrt", "vlbert", "vilbert")
SOURCES = {
    "common": ROOT,
    "lxrt": ROOT / "LXMERT" / "src",
    "vlbert": ROOT / "VLBERT",
    "vilbert": ROOT / "ViLBERT",
}
COMMANDS = (
    "parity",
    "export",
    "ask",
    "compare",
    "demo",
    "data",
    "experiments",
    "bench",
    "readme",
    "features",
    "web",
    "training.processes",
)
CORE_AT_MOST = 45
# Folders of programs: a package that imports one of them works in the checkout alone.
SCRIPTS = {"tasks", "pretrain", "vqa", "tests", "images"}

BACKBONE = re.compile(r"lxmert|lxrt|vl[-_ ]?bert|vilbert", re.IGNORECASE)
# Words with a backbone's name in them that are no backbone: everywhere, and in one file each.
FORMATS = re.compile(
    r"lxmert_tsv|vlbert_json"  # the modules that read these two files of region features
    r"|vlbert-json"  # and what one of them is called in `--format`
    r"|(read_)?lxmert_(json|split)"  # the form of VQA's JSON that LXMERT re-distributes
)
FORMATS_IN = {
    # The detector, stored with the features.
    "features/lxmert_tsv.py": r"Faster R-CNN .* \(LXMERT TSV\)",
    "features/vlbert_json.py": r"Faster R-CNN .* \(VL-BERT JSON\)",
    "features/lmdb_records.py": r"Faster R-CNN .* \(ViLBERT LMDB\)",
    "features/command.py": r"an LXMERT \*_obj36\.tsv|(VL-BERT's <image id>|ViLBERT's LMDB)"
    r"|VL-BERT's or ViLBERT's\)",
    "data/command.py": r"the JSON of LXMERT|LXMERT TSV",
    # Where files come from and whose layout they have.
    "data/dataset_table.py": r"nlp\.cs\.unc\.edu/data/lxmert_data|(layout|features) of LXMERT",
    "data/datasets.py": r"of a feature TSV, as LXMERT has it",
    "training/optim.py": r"vlbert_adamw",  # the name of an optimiser, a flag and a key of runs
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """All imports among our modules, those for types alone included."""
    return grimp.build_graph(*OURS, include_external_packages=True, cache_dir=None)


def module_files() -> Iterator[tuple[str, Path]]:
    """Module name and file of all our modules."""
    for package, folder in SOURCES.items():
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_contracts_of_the_configuration_hold():
    linter = Path(sysconfig.get_path("scripts")) / "lint-imports"
    found = run(str(linter), "--no-logo", "--no-cache")
    assert found.returncode == 0, found.stdout + found.stderr
    assert re.search(r"Contracts: [5-9] kept, 0 broken", found.stdout), found.stdout


def test_the_contracts_cover_every_package_that_is_installed(graph):
    """A new backbone or module that nobody put under the contracts is found here."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert set(options["importlinter"]["root_packages"]) == set(OURS)
    installed = {word.rstrip("*") for word in options["setuptools"]["packages"]["find"]["include"]}
    assert installed == set(OURS)
    offered = entry_points(group="adaptive_finetuning.backbones")
    assert {point.module.split(".")[0] for point in offered} == set(OURS) - {"common"}
    ours = {module for module in graph.modules if module.split(".")[0] in OURS}
    assert ours == {name for name, _ in module_files()}


def test_no_module_imports_itself_through_others(graph):
    arrows = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert len(arrows) > 150
    TopologicalSorter(arrows).prepare()  # a CycleError names the circle


def test_no_package_imports_a_script(graph):
    assert SCRIPTS.isdisjoint(graph.modules)


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every name and every string of a file that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str) and id(node) not in told:
                yield node.lineno, node.value
            continue
        for field in ("id", "attr", "name", "asname", "module", "arg"):
            word = getattr(node, field, None)
            if isinstance(word, str):
                yield getattr(node, "lineno", 0), word


def backbones_named(path: Path) -> list[str]:
    """`file:line: text` wherever a file of `common` knows a backbone by name."""
    name = path.relative_to(ROOT / "common").as_posix()
    allowed = FORMATS_IN.get(name, r"\A\Z")
    return [
        f"common/{name}:{line}: {text}"
        for line, text in sorted(words_of(path))
        if BACKBONE.search(re.sub(allowed, "", FORMATS.sub("", text)))
    ]


def test_common_names_no_backbone():
    files = [path for name, path in module_files() if name.split(".")[0] == "common"]
    assert len(files) > 90
    assert [found for path in files for found in backbones_named(path)] == []


def test_a_name_is_found_in_code_and_not_in_what_is_said_about_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "common" / "a.py"
    path.parent.mkdir()
    path.write_text('"""LXMERT."""\n# VL-BERT\nfrom common.features.lxmert_tsv import x\n')
    assert backbones_named(path) == []
    lines = (
        'text = "see LXMERT"',
        "import vlbert.data",
        "def f(lxrt: int): ...",
        "call(lxrt=1)",
        "class VLBertScript: ...",
        'f"{x} of ViLBERT"',
        "a.lxmert.b",
        "from lxrt import c",
    )
    path.write_text("\n".join(lines))
    assert [int(found.split(":")[1]) for found in backbones_named(path)] == [1, 2, 3, 4, 5, 6, 7, 8]


CORE = """
import json, sys
from common.adapt import adapt
first = list(sys.modules)
from transformers import LxmertConfig, LxmertModel
layers = dict(l_layers=1, r_layers=1, x_layers=1)
sizes = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, vocab_size=20)
adapt(LxmertModel(LxmertConfig(**layers, **sizes)), strategy="SpotTune_Block", policy="small")
print(json.dumps([first, list(sys.modules)]))
"""


def test_adapting_a_foreign_model_loads_the_core_alone():
    found = run(sys.executable, "-c", CORE)
    assert found.returncode == 0, found.stderr
    first, after = json.loads(found.stdout)
    assert len({m for m in after if m.split(".")[0] in OURS}) <= CORE_AT_MOST
    others = ("data", "features", "training", "results", "tasks", "runs")
    assert {f"common.{name}" for name in others}.isdisjoint(after)
    assert {"matplotlib", "lmdb", "tensorboardX"}.isdisjoint(after)
    assert {"transformers", "yaml", "lxrt"}.isdisjoint(first), "needed for a foreign model only"


STARTS = """
import os, runpy, sys
import torch
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        sys.argv = [name, "--help"]
        sys.stdout = sys.stderr = open(os.path.join({folder!r}, name), "w")
        try:
            runpy.run_module("common." + name, run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as end:
            status = end.code or 0
        finally:
            sys.stdout.flush()
        os._exit(status if isinstance(status, int) else 1)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="one start for all commands needs fork")
def test_every_command_starts_and_explains_itself(tmp_path):
    """As `python -m common.NAME --help`, each in a process of its own that has torch already."""
    found = run(sys.executable, "-c", STARTS.format(folder=str(tmp_path)), *COMMANDS)
    said = {name: (tmp_path / name).read_text() for name in COMMANDS}
    ended = dict(line.split() for line in found.stdout.splitlines())
    assert ended == dict.fromkeys(COMMANDS, "0"), found.stderr + "\n".join(said.values())
    for name in COMMANDS:
        assert f"common.{name}" in said[name] or "usage: " in said[name], said[name]
