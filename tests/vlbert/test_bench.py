"""What `make bench` measures of VL-BERT."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from common.bench.cases import Case, dropping_cases
from common.bench.measure import Bench
from common.runs.backbones import BenchSettings, find_backbone
from common.training.flops import FlopCounter
from tests.common.tiny_models import vlbert_config
from vlbert import bench
from vlbert.sizes import NetworkConfig

SETTINGS = BenchSettings(backbone="vlbert", layers=2, batch=12)


@pytest.fixture
def supplied(monkeypatch):
    """The real thing with narrow layers."""
    real, tiny = bench.bench_config, vlbert_config()

    def narrow(layers):
        encoder = real(layers).encoder
        encoder = replace(
            encoder, hidden_size=24, visual_size=24, intermediate_size=96, num_attention_heads=3
        )
        return replace(
            real(layers),
            encoder=encoder,
            tokens=tiny.tokens,
            num_answers=5,
            image=replace(real(layers).image, feature_size=7, final_dim=24, waves=2),
        )

    monkeypatch.setattr(bench, "bench_config", narrow)
    return bench.bench_model


def test_base_width_is_what_is_measured_through_the_registered_backbone():
    assert bench.bench_config(None) == NetworkConfig()
    assert bench.bench_config(7).encoder == replace(NetworkConfig().encoder, num_hidden_layers=7)
    assert find_backbone("vlbert").bench is bench.bench_model


def test_questions_have_real_lengths_and_regions_stand_behind_the_image(supplied):
    inputs = supplied(SETTINGS).inputs
    lengths = (inputs["question"] > 0).sum(1)
    assert lengths.min() >= 6 and lengths.max() == inputs["question"].shape[1] == 12
    boxes = inputs["boxes"]
    assert boxes.shape == (12, 37, 4 + 7)
    assert torch.equal(boxes[:, 0, :4], torch.tensor([0.0, 0.0, 639.0, 479.0]).expand(12, -1))
    torch.testing.assert_close(boxes[:, 0, 4:], boxes[:, 1:, 4:].mean(1))
    corners = boxes[..., :4]
    assert (corners[..., 2:] >= corners[..., :2]).all() and corners.min() >= 0
    assert (corners <= torch.tensor([639.0, 479.0] * 2)).all()


def test_dropout_is_that_of_the_recipe_and_layers_are_limited(supplied):
    found = supplied(SETTINGS)
    model = found.build()
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    assert len(model.vlbert.encoder.layer) == 2 and "2 layers, 12 questions" in found.description
    assert found.reference is None


def test_every_policy_of_vlbert_can_be_measured(supplied):
    cases = [
        Case("train", "SpotTune", "exact", 0.5, policy) for policy in ("none", "small", "published")
    ]
    models = Bench(supplied(SETTINGS), SETTINGS, cases)
    for case in cases:
        models.run(case)()


def test_the_work_of_evaluation_follows_the_blocks_kept_of_twelve(supplied):
    settings = replace(SETTINGS, layers=None)
    found = supplied(settings)
    cases = [dropping_cases(share, "fp32")[0] for share in found.kept]
    models = Bench(found, settings, cases)

    def work(case):
        call = models.run(case)
        with FlopCounter() as counter:
            call()
        return counter.total

    full, counted = work(cases[0].baseline()), [work(case) for case in cases]
    assert [round(12 * share) for share in found.kept] == [12, 10, 8, 6, 4, 2, 0]
    assert counted[0] == full and counted[-1] < 0.1 * full
    for share, flops in zip(found.kept, counted, strict=True):
        assert flops == pytest.approx(counted[-1] + (full - counted[-1]) * share, abs=1e-6 * full)
