"""Evaluation of several questions about one image: it computes less, and is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from common.bench.cases import all_cases, image_cases
from common.bench.command import run_bench
from common.bench.images import same_images
from common.bench.measure import Bench
from common.bench.report import format_report, verdicts
from common.runs.backbones import BenchModel, BenchSettings
from common.training.flops import FlopCounter
from lxrt.modeling import VQAModel
from tests.common.tiny_models import lxmert_config, lxmert_inputs

BATCH, QUESTIONS = 8, 4.0
SETTINGS = BenchSettings(
    backbone="tiny", layers=1, reference_layers=3, batch=BATCH, rounds=1, shares=(0.5,)
)


def supply(settings: BenchSettings) -> BenchModel:
    layers = settings.layers or 3
    config = replace(lxmert_config(), r_layers=layers)
    inputs = {k: x.float() if x.is_floating_point() else x for k, x in lxmert_inputs(BATCH).items()}
    return BenchModel(
        f"tiny, {layers} vision layers, more",
        lambda: VQAModel(config),
        inputs,
        lambda logits: logits.square().mean(),
        lambda: VQAModel(config),
        "elsewhere",
        inputs,
        questions=QUESTIONS,
    )


def test_rows_are_about_images_with_so_many_questions_each():
    same = same_images(27, 5.4, torch.device("cpu"))
    assert len(same) == 5 and same.group.bincount().tolist() == [6, 5, 6, 5, 5]


def test_the_layers_of_the_image_are_computed_once():
    cases = image_cases(QUESTIONS, "fp32", reference=False)[1:]
    models = Bench(supply(SETTINGS.of_reference()), SETTINGS.of_reference(), cases)

    def work(case):
        call = models.run(case)
        with FlopCounter() as counter:
            call()
        return counter.total

    apart = work(cases[0].baseline())
    config = supply(SETTINGS.of_reference()).build().config
    regions, width = 4, config.hidden_size
    # 2 of 8 rows: embedding, and three layers of projections, attention and feed-forward.
    embedding = 2 * regions * width * (config.visual_feat_dim + config.visual_pos_dim)
    layer = 2 * regions * width * (4 * width + 2 * config.intermediate_size + 2 * regions)
    assert work(cases[0]) == apart - 6 * (embedding + 3 * layer)
    # Decisions at random are not the same, those made once are.
    assert work(cases[2]) == work(cases[0]) < work(cases[1]) < apart


def test_it_is_measured_for_backbones_that_have_such_layers_and_shown(tmp_path):
    wanted = all_cases(SETTINGS, True, True, questions=QUESTIONS)
    found = [case for case in wanted if case.questions is not None]
    assert [case.against for case in found].count("whole") == 3 and len(found) == 5
    assert not any(case.questions for case in all_cases(SETTINGS, True, True))
    path = tmp_path / "cpu.json"
    file = run_bench(SETTINGS, path, True, only="questions", quiet=True, supply=supply)
    assert set(file.cases) == {case.key for case in found}
    lines = format_report(file).splitlines()
    start = next(n for n, line in enumerate(lines) if "4 questions about an image" in line)
    rows = lines[start + 2 : start + 7]
    assert ["| whole |" in row for row in rows] == [False, True, True, True, True]
    assert ["elsewhere" in row for row in rows] == [False] * 4 + [True]
    assert "decided once for all" in rows[3] and lines[start + 7] == ""
    assert verdicts(file) == []  # the target is of 5.4 questions


@pytest.mark.parametrize("against", ["whole", "standard"])
def test_what_is_compared_shares_nothing(against):
    case = next(c for c in image_cases(QUESTIONS, "fp32", True) if c.against == against)
    assert case.baseline().questions is None and case.baseline().strategy == "standard"
