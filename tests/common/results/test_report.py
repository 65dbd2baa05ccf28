"""Reports are complete, self-contained and safe."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from common.errors import DataError
from common.results.report import write_comparison_report, write_run_report
from tests.common.result_examples import lxmert_layout, make_result, write_result

VOID = {"meta", "img", "br"}
SMALL = lxmert_layout("SpotTune", (2, 2, 2), 4)
EVIL = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """Collects what a browser would load or follow, the text, and whether tags are balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "srcset", "data", "action")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_result(tmp_path, make_result("SpotTune", layout=SMALL, warnings=["policy collapsed"]))
    return tmp_path


def test_run_report_shows_numbers_command_versions_and_warnings(run_dir: Path) -> None:
    path = write_run_report(run_dir)
    assert path == run_dir / "report.html"
    text = Page(path).text
    for part in (
        "80.0 %",
        "85.0 %",
        "5.0 points",
        "2,500,000",
        "1,250,000",
        "300,000",
        "--strategy=SpotTune",
        "torch 2.13.0",
        "policy collapsed",
        "125.0 ms",
        "812 MB",
        "majority answer",
        "question only",
        "held-out tenth of train",
    ):
        assert part in text


def test_run_report_has_decisions_types_history_and_training_pictures(run_dir: Path) -> None:
    page = Page(write_run_report(run_dir))
    assert page.tags.count("img") == 4
    for reference in page.references:
        data = base64.b64decode(reference.removeprefix("data:image/png;base64,"), validate=True)
        assert data.startswith(b"\x89PNG")


def test_run_report_lists_every_epoch(run_dir: Path) -> None:
    path = write_run_report(run_dir)
    tables = re.findall(r"<table>.*?</table>", path.read_text(), re.DOTALL)
    epochs = next(table for table in tables if "<th>epoch</th>" in table)
    assert epochs.count("<tr>") == 1 + 4


def test_run_report_of_a_static_strategy_has_no_decisions(tmp_path: Path) -> None:
    write_result(tmp_path, make_result("standard"))
    page = Page(write_run_report(tmp_path))
    assert page.tags.count("img") == 1
    assert "What the policy decided" not in page.text


def test_run_report_of_a_result_with_the_required_keys_only(tmp_path: Path) -> None:
    full = make_result("standard")
    keys = ("backbone", "dataset", "strategy", "accuracy", "parameters")
    write_result(tmp_path, {key: full[key] for key in keys})
    assert "not recorded" in Page(write_run_report(tmp_path)).text


def test_reports_refer_to_nothing_outside_themselves(run_dir: Path) -> None:
    comparison = run_dir / "comparison.html"
    write_comparison_report(
        [make_result("standard"), make_result("SpotTune", layout=SMALL)], comparison
    )
    for path in (write_run_report(run_dir), comparison):
        page = Page(path)
        assert page.references and all(ref.startswith("data:") for ref in page.references)
        assert not page.open
        assert not {"link", "script", "iframe", "object"} & set(page.tags)
        assert not re.search(r"https?://|@import|url\(", path.read_text())


def test_reports_escape_every_text(tmp_path: Path) -> None:
    result = make_result(
        "SpotTune",
        layout=SMALL,
        command=EVIL,
        warnings=[EVIL],
        dataset=EVIL,
        name=EVIL,
        versions={EVIL: EVIL},
        selection=EVIL,
        device=EVIL,
    )
    result["accuracy"]["val"][EVIL] = 1.0
    write_result(tmp_path, result)
    write_comparison_report([result], tmp_path / "comparison.html", [EVIL])
    for path in (write_run_report(tmp_path), tmp_path / "comparison.html"):
        page = Page(path)
        assert "script" not in page.tags
        assert page.text.count("alert('x')") >= 3


def test_comparison_report_has_all_rows_baselines_problems_and_commands(tmp_path: Path) -> None:
    results = [make_result("standard", val=61.5), make_result("BlockDrop", val=58.25)]
    write_comparison_report(results, tmp_path / "new" / "c.html", ["bad/result.json: broken"])
    page = Page(tmp_path / "new" / "c.html")
    for part in (
        "standard",
        "BlockDrop",
        "61.5",
        "majority answer",
        "question only",
        "bad/result.json: broken",
        "--strategy=BlockDrop",
    ):
        assert part in page.text
    assert page.tags.count("img") == 2


def test_report_of_a_folder_without_result_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="result.json"):
        write_run_report(tmp_path)
    with pytest.raises(DataError, match="no results"):
        write_comparison_report([], tmp_path / "c.html")
