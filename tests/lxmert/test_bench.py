"""What `make bench` measures of LXMERT: ours and that of `transformers` read the same questions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from common.bench.cases import Case
from common.bench.measure import Bench
from common.runs.backbones import BenchSettings
from lxrt import bench
from lxrt.hf_folder import their_name
from lxrt.sizes import LxmertConfig


@pytest.fixture
def supplied(monkeypatch):
    """The real thing with narrow layers."""
    real = bench.bench_config

    def narrow(layers):
        return replace(
            real(layers),
            vocab_size=60,
            hidden_size=24,
            num_attention_heads=3,
            intermediate_size=40,
            visual_feat_dim=7,
            num_answers=5,
        )

    monkeypatch.setattr(bench, "bench_config", narrow)
    return bench.bench_model(BenchSettings("lxmert", layers=2, batch=9))


def test_the_reference_is_the_same_model_on_the_same_pairs(supplied):
    ours, theirs = supplied.build().eval(), supplied.reference().eval()
    weights = {their_name(name): x for name, x in ours.state_dict().items()}
    theirs.model.load_state_dict(weights, strict=True)
    mine, expected = ours(**supplied.inputs), theirs(**supplied.reference_inputs)
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)
    assert expected.std() > 1e-3 and supplied.loss(mine) > 0


def test_only_the_reference_gets_the_padding_that_no_question_of_the_batch_needs(supplied):
    lengths = supplied.inputs["input_mask"].sum(1)
    assert (lengths.min() >= 8) and (lengths.max() == supplied.inputs["input_ids"].shape[1] == 14)
    assert supplied.reference_inputs["input_ids"].shape[1] == 20
    assert torch.equal(supplied.reference_inputs["attention_mask"].sum(1), lengths)


def test_dropout_is_that_of_the_recipe_in_both_and_layers_are_limited_in_every_stack(supplied):
    assert LxmertConfig().hidden_dropout_prob == 0.1
    for model in (supplied.build(), supplied.reference()):
        rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
        assert rates == {0.1}
        names = [
            n
            for n, _ in model.named_modules()
            if n.endswith((".layer.1", ".r_layers.1", ".x_layers.1"))
        ]
        assert len(names) == 3
        assert not any(n.endswith("layers.2") for n, _ in model.named_modules())
    assert "2-2-2 language, vision and cross layers" in supplied.description


def test_base_width_is_what_is_measured():
    assert bench.bench_config(None) == LxmertConfig()
    assert bench.bench_config(7) == replace(LxmertConfig(), l_layers=7)


def test_every_policy_of_lxmert_can_be_measured(supplied):
    settings = BenchSettings("lxmert", layers=2, batch=9)
    cases = [
        Case("train", "SpotTune", "exact", 0.5, policy) for policy in ("none", "small", "published")
    ]
    models = Bench(supplied, settings, cases)
    for case in cases:
        models.run(case)()
