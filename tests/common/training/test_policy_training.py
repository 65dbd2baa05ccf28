"""What `--policy-training automatic` means, and what the named ways set."""

from __future__ import annotations

import argparse

import pytest

from common.training.options import add_strategy_options, check_options
from common.training.policy_lessons import PolicyTraining

STARTED, PUBLISHED = (None, 1.0, 1.0), (0, 0.0, 5.0)  # passes of the start, hold, temperature


def settings(*flags: str, **of_config: object) -> tuple[int, float, float]:
    parser = argparse.ArgumentParser()
    add_strategy_options(parser)
    args = parser.parse_args(list(flags))
    check_options(args, **of_config)
    return args.policy_start, args.policy_hold, args.temperature


@pytest.mark.parametrize("strategy", ["SpotTune", "SpotTune_Res", "SpotTune_Block"])
@pytest.mark.parametrize("policy", [(), ("--policy", "published")])
def test_a_network_that_chooses_between_frozen_and_finetuned_parts_is_started(strategy, policy):
    assert settings("--strategy", strategy, *policy) == STARTED
    assert settings("--strategy", strategy, "--policy-training", "automatic") == STARTED


@pytest.mark.parametrize(
    "flags",
    [
        ("SpotTune", "--policy-training", "published"),
        ("SpotTune", "--target-rate", "0.5"),
        ("SpotTune", "--constrain-k", "3"),
        ("SpotTune", "--deterministic-scale", "1"),
        ("SpotTune", "--policy", "random:0.5"),
        ("SpotTune", "--policy", "oracle:learned"),
        ("SpotTune", "--policy", "shared"),
        ("BlockDrop",),
        ("BlockReplace",),
    ],
)
def test_all_others_are_trained_as_published(flags):
    assert settings("--strategy", *flags) == PUBLISHED


def test_a_single_setting_leaves_the_others_as_they_are():
    block = ("--strategy", "SpotTune_Block")
    assert settings(*block, "--policy-hold", "0.25") == (None, 0.25, 1.0)
    assert settings(*block, "--temperature", "5") == (None, 1.0, 5.0)
    assert settings(*block, "--policy-training", "published", "--policy-start", "2")[:2] == (2, 0.0)


@pytest.mark.parametrize(
    "of_config", [{"policy": "random:0.5"}, {"policy": "small", "constrain_k": 2.0}]
)
def test_what_a_config_says_counts_as_a_flag(of_config):
    def passes(**config: object) -> int:
        args = argparse.Namespace(policy=None, policy_start=None)
        check_options(args, strategy="SpotTune", **config)
        return args.policy_start

    assert passes(policy="small") is None
    assert passes(**of_config) == 0


def test_a_start_has_as_many_passes_as_its_updates_need():
    started = PolicyTraining(start=None)
    assert started.teaches and started.resolved(new_head=True).warmup == 0.1
    # 450 updates, in at least 2 and at most 16 passes.
    assert [started.passes(batches) for batches in (1, 14, 29, 30, 100, 225, 10_000)] == [
        *(16, 16, 16, 15, 5, 2, 2)
    ]
    assert PolicyTraining(start=3).passes(100) == 3
    assert not PolicyTraining(start=0).teaches
