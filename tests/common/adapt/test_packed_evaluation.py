"""Evaluation with weights that are laid out once: every strategy gives what it gives without."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from common.adapt.adapting import adapt, adaptive_part
from common.adapt.encoder import AdaptiveOptions
from common.modules.packing import CHANNELS, PackedWeights, packed_weights
from lxrt.modeling import VQAModel
from tests.common.tiny_models import BATCH, drift_layers, lxmert_config, random_decisions

STRATEGIES = ("standard", "SpotTune_Block", "SpotTune_Res", "SpotTune", "BlockDrop", "BlockReplace")


def wide(strategy, executor="gathered"):
    torch.manual_seed(0)
    config = replace(
        lxmert_config(),
        hidden_size=CHANNELS,
        num_attention_heads=4,
        intermediate_size=CHANNELS + 64,
        l_layers=1,
        x_layers=1,
        r_layers=1,
    )
    model = VQAModel(config)
    adapt(model, strategy, "small", options=AdaptiveOptions(eval_executor=executor))
    drift_layers(model, 0.05)
    return model.eval()


def inputs():
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(1, 40, (BATCH, 6), generator=generator),
        "input_mask": torch.ones(BATCH, 6, dtype=torch.long),
        "features": torch.randn(BATCH, 4, 7, generator=generator),
        "boxes": torch.rand(BATCH, 4, 4, generator=generator),
    }


def answers(model, decisions):
    part = adaptive_part(model)
    if part is None:
        return model(**inputs())
    with part.force(decisions):
        return model(**inputs())


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize(
    ("strategy", "executor"),
    [*((name, "gathered") for name in STRATEGIES), ("SpotTune", "dense"), ("SpotTune", "grouped")],
)
@torch.no_grad()
def test_answers_are_those_of_plain_products_but_for_rounding(strategy, executor):
    model = wide(strategy, executor)
    part = adaptive_part(model)
    decisions = None if part is None else random_decisions(model).float()
    packed = packed_weights(model)
    assert isinstance(packed, PackedWeights)
    for drift in (0.0, 0.05):
        drift_layers(model, drift)
        plain = answers(model, decisions)
        for _ in range(2):
            with packed:
                found = answers(model, decisions)
            torch.testing.assert_close(found, plain, rtol=2e-4, atol=2e-5)
    assert packed.bytes > 4 * CHANNELS**2
    assert not torch.equal(found, plain), "nothing was computed with other products"
