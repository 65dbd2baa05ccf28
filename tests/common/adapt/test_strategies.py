"""The table of strategies: names, totals of decisions, order, frozen layers, errors."""

from __future__ import annotations

import pytest
import torch

from common.adapt.adapting import adapt, adaptive_part, parameter_counts, set_global_decisions
from common.adapt.encoder import AdaptiveOptions
from common.adapt.strategies import STRATEGIES, find_strategy, plan_sites
from common.errors import ConfigError
from tests.common.tiny_models import SingleStream, adapted, pretrained


def decisions(encoder, strategy):
    plans = plan_sites(encoder.layers(), STRATEGIES[strategy], encoder.reads)
    return [name for sites in plans for site in sites for name in site.decision_names()]


@pytest.fixture(scope="module")
def twelve_layers():
    with torch.device("meta"):
        return SingleStream(layers=12, channels=24, heads=12).encoder


@pytest.mark.parametrize(
    ("strategy", "total"),
    [
        ("SpotTune_Block", 12),
        ("SpotTune_Res", 24),
        ("SpotTune", 180),
        ("BlockDrop", 12),
        ("BlockReplace", 12),
    ],
)
def test_totals_of_a_single_stream_of_12_layers_and_12_heads(twelve_layers, strategy, total):
    assert len(decisions(twelve_layers, strategy)) == total


def test_order_in_a_single_stream_is_heads_output_intermediate_output(twelve_layers):
    names = decisions(twelve_layers, "SpotTune")
    assert names[:15] == [f"head.{h}" for h in range(1, 13)] + [
        "attention.output",
        "intermediate",
        "output",
    ]
    assert names == names[:15] * 12
    assert decisions(twelve_layers, "SpotTune_Res")[:2] == ["attention", "ffn"]


def test_names_are_found_in_any_case_and_under_published_aliases():
    for name in STRATEGIES:
        assert find_strategy(name.upper())[0].name == name
    assert find_strategy("Frozen_Bert")[0].name == "Frozen"
    assert find_strategy("pretrained_frozen")[0].name == "Frozen"
    assert find_strategy("specific_k")[0].name == "FrozenLayers"
    assert find_strategy("last_4") == (STRATEGIES["LastK"], 4)


def test_an_unknown_strategy_lists_the_valid_ones_and_the_nearest():
    with pytest.raises(ConfigError) as error:
        find_strategy("SpotTune_Blok")
    assert "'SpotTune_Blok'" in str(error.value) and "Did you mean SpotTune_Block" in str(
        error.value
    )
    assert all(name in str(error.value) for name in STRATEGIES)


@pytest.mark.parametrize(
    ("strategy", "flags", "trainable"),
    [
        ("Frozen", {}, []),
        ("LastK", {"trainable_layers": "last:2"}, [2, 3]),
        ("last_1", {}, [3]),
        ("FrozenLayers", {"frozen_layers": "1,3"}, [2]),
        ("FrozenLayers", {"frozen_layers": ["layer.2"]}, [1, 3]),
        ("standard", {}, [1, 2, 3]),
    ],
)
def test_static_strategies_freeze_the_named_layers_and_nothing_else(strategy, flags, trainable):
    model = adapt(pretrained("single"), strategy, **flags)
    for number, layer in enumerate(model.encoder.layer, 1):
        assert {p.requires_grad for p in layer.parameters()} == {number in trainable}
    assert all(p.requires_grad for p in model.embed.parameters())
    assert all(p.requires_grad for p in model.head.parameters())
    assert adaptive_part(model) is None


@pytest.mark.parametrize(
    ("strategy", "flags", "message"),
    [
        ("LastK", {}, "--trainable-layers last:4"),
        ("LastK", {"trainable_layers": "4"}, "'4' not understood; use e.g. last:4"),
        ("LastK", {"trainable_layers": "last:9"}, "9 trainable layers wanted, the encoder has 3"),
        ("last_2", {"trainable_layers": "last:1"}, "disagree"),
        ("FrozenLayers", {}, "--frozen-layers 3,4,10,11"),
        ("FrozenLayers", {"frozen_layers": "2,7"}, "unknown layers 7; valid: 1..3 or layer.1"),
        ("standard", {"frozen_layers": "2"}, "belong to FrozenLayers"),
        ("SpotTune", {"trainable_layers": "last:1"}, "belong to LastK"),
        ("SpotTune", {"policy": "large"}, "unknown policy 'large'; valid: small, published"),
        ("SpotTune", {"policy": "random:2"}, "random:0.5"),
        ("SpotTune", {"policy": "oracle:"}, "use e.g. oracle:learned"),
        ("SpotTune", {"policy": "published"}, "no published policy network; use 'small'"),
    ],
)
def test_wrong_choices_are_one_clear_error(strategy, flags, message):
    with pytest.raises(ConfigError, match=None) as error:
        adapt(pretrained("single"), strategy, **flags)
    assert message in str(error.value)


def test_a_model_is_adapted_once_and_needs_an_encoder():
    model = adapted("single", "BlockDrop")
    with pytest.raises(ConfigError, match="adapted already"):
        adapt(model, "SpotTune")
    with pytest.raises(ConfigError, match="Linear has 0 encoders that can be adapted"):
        adapt(torch.nn.Linear(2, 2), "SpotTune")
    with pytest.raises(ConfigError, match="unknown policy evaluation 'best'; valid: argmax"):
        adapt(pretrained("single"), "SpotTune", options=AdaptiveOptions(policy_eval="best"))


def test_state_dict_names_are_upstreams_with_everything_else_under_adaptive():
    plain = set(pretrained("lxmert").state_dict())
    assert set(adapt(pretrained("lxmert"), "standard").state_dict()) == plain
    extra = set(adapted("lxmert", "SpotTune").state_dict()) - plain
    assert plain <= set(adapted("lxmert", "SpotTune").state_dict())
    assert extra and all(".encoder.adaptive." in name for name in extra)


def test_twins_hold_the_pretrained_weights_and_count_as_frozen():
    model = adapted("single", "SpotTune", drift=0.0)
    part = adaptive_part(model)
    layers = dict(model.encoder.layer.named_parameters())
    for name, parameter in part.twins.named_parameters():
        number, rest = name.removeprefix("layer_").split(".", 1)
        assert torch.equal(parameter, layers[f"{int(number) - 1}.{rest}"])
        assert not parameter.requires_grad
    counts = parameter_counts(model)
    assert counts["frozen"] == sum(p.numel() for p in layers.values())
    assert counts["policy"] == sum(p.numel() for p in part.policy.parameters())
    assert counts["trainable"] == sum(p.numel() for p in pretrained("single").parameters())


def test_global_decisions_are_the_majority_or_the_k_most_used_live_sites():
    part = adaptive_part(adapted("lxmert", "SpotTune_Res"))
    share = torch.linspace(0.9, 0.1, len(part.live))
    set_global_decisions(part, share)
    assert part.global_decisions.tolist() == [float(s > 0.5) for s in share]
    share = share.flip(0)
    set_global_decisions(part, share, k=3)
    live = [i for i in range(len(share)) if part.live[i]]
    best = sorted(live, key=lambda i: -share[i])[:3]
    assert sorted(part.global_decisions.nonzero().flatten().tolist()) == sorted(best)
    with pytest.raises(ConfigError, match="global k = 99 is not in 0.."):
        set_global_decisions(part, share, k=99)
