"""Learning rates and weight decay of ViLBERT's parameters."""

from __future__ import annotations

import pytest
from torch import nn

from common.adapt.adapting import adapt, named_parameter_groups
from tests.common.tiny_models import vilbert_config
from tests.vilbert.models import under
from vilbert.heads import VILBertForVQA
from vilbert.recipe import parameter_groups


def grouped(model: nn.Module, others_lr: float | None = None) -> dict[str, tuple[float, float]]:
    """Name → learning rate and weight decay."""
    named = named_parameter_groups(model)["trainable"]
    names = {id(p): name for name, p in named}
    found = parameter_groups(named, 4e-5, 0.01, 1e-4, others_lr)
    pairs = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in found
        for p in group["params"]
    }
    assert len(pairs) == sum(len(group["params"]) for group in found) == len(named)
    return pairs


def test_weights_decay_and_biases_and_layer_norms_do_not():
    """The original had it the other way round."""
    groups = grouped(adapt(VILBertForVQA(vilbert_config())))
    rests = {name for name, (_, decay) in groups.items() if decay == 0}
    assert all(decay in (0, 0.01) for _, decay in groups.values())
    assert rests == {n for n in groups if n.endswith(".bias") or "LayerNorm" in n}
    assert {
        "bert.encoder.c_layer.0.biOutput.LayerNorm1.weight",
        "bert.encoder.v_layer.0.output.LayerNorm.weight",
        "bert.v_embeddings.LayerNorm.bias",
        "vil_prediction.main.3.bias",
    } <= rests
    assert not {"vil_prediction.main.0.weight_v", "bert.t_pooler.dense.weight"} & rests


def test_the_classifier_has_a_rate_of_its_own():
    groups = grouped(adapt(VILBertForVQA(vilbert_config())))
    assert {n for n, (lr, _) in groups.items() if lr == 1e-4} == under(groups, "vil_prediction.")
    assert {lr for lr, _ in groups.values()} == {4e-5, 1e-4}


@pytest.mark.parametrize("strategy", ["standard", "BlockReplace"])
def test_from_scratch_all_that_is_not_berts_has_the_higher_rate(strategy):
    groups = grouped(adapt(VILBertForVQA(vilbert_config()), strategy), others_lr=1e-4)
    lower = {name for name, (lr, _) in groups.items() if lr == 4e-5}
    assert lower == under(groups, "bert.embeddings.", "bert.encoder.layer.")
    assert {"bert.v_pooler.dense.weight", "bert.encoder.c_layer.0.biattention.key1.weight"} <= (
        set(groups) - lower
    )
