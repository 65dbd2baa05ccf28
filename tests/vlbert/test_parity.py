"""VL-BERT computes what the original system computed (tests/goldens: its numbers, not its code)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.parity import main
from common.training.optim import make_optimizer
from tests.lxmert.test_parity import change_tensor, lines_of, write_case

KINDS = {
    "core",
    "pretraining_heads",
    "vqa_net",
    "pretrain_net",
    "roi_coord",
    "resnet_stage",
    "partial_load",
    "optim",
    "vqa_data",
}


def test_all_cases_of_the_original_agree(goldens, capsys):
    assert main(["--backbone", "vlbert"]) == 0
    shown = capsys.readouterr().out
    cases = [path.parent for path in (goldens / "vlbert").rglob("config.json")]
    assert {json.loads((c / "config.json").read_text())["kind"] for c in cases} == KINDS
    wanted = [name for case in cases for name in load_file(case / "outputs.safetensors")]
    assert sorted(lines_of(shown, "ok")) == sorted(wanted) and len(wanted) > 140
    assert shown.endswith("all tensors agree\n")


@pytest.mark.parametrize(
    ("case", "weight", "must_fail", "must_agree"),
    [
        (
            "core_ln_pooler",
            "encoder.layer.1.output.dense.bias",
            {"encoded_last", "text_split"},
            {"embedding_output", "encoded_layer_0"},
        ),
        ("vqa_mlm", "final_mlp.2.bias", {"logits", "loss"}, {"hidden", "obj_reps"}),
        (
            "pretrain_net_multitask",
            "aux_text_visual_embedding.weight",
            {"mlm_loss_aux", "loss"},
            {"mlm_loss_wvc", "mvrc_loss"},
        ),
        ("resnet_stage", "dilated.1.conv2.weight", {"dilated"}, {"stride_in_3x3"}),
    ],
)
def test_a_changed_weight_is_noticed_and_only_where_it_matters(
    case, weight, must_fail, must_agree, goldens, tmp_path, capsys
):
    folder = write_case(goldens / "vlbert" / case, tmp_path / "case")
    change_tensor(folder / "weights.safetensors", weight, 0.5)
    assert main(["--backbone", "vlbert", "--case", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert must_fail <= set(lines_of(shown, "FAIL"))
    assert must_agree <= set(lines_of(shown, "ok"))


def test_a_case_without_outputs_writes_all_tensors_and_listed_gradients(goldens, tmp_path):
    source = goldens / "vlbert" / "vqa_1fc_scale_1x1"
    folder = write_case(source, tmp_path / "case", "outputs.safetensors")
    assert (
        main(
            [
                "--backbone",
                "vlbert",
                "--case",
                str(folder),
                "--write",
                str(tmp_path / "out.safetensors"),
            ]
        )
        == 0
    )
    written = load_file(tmp_path / "out.safetensors")
    wanted = load_file(source / "outputs.safetensors")
    listed = json.loads((source / "config.json").read_text())["grad_stats_order"]
    assert wanted.keys() | {f"grad::{name}" for name in listed} <= written.keys()


def test_partial_loading_elsewhere_than_the_original_is_an_error(goldens, tmp_path, capsys):
    source, folder = goldens / "vlbert" / "partial_load", tmp_path / "case"
    folder.mkdir()
    for name in ("weights.safetensors", "outputs.safetensors"):
        (folder / name).write_bytes((source / name).read_bytes())
    config = json.loads((source / "config.json").read_text())
    config["prefix_changes"] = config["prefix_changes"][2:]  # without the classifier's
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["--backbone", "vlbert", "--case", str(folder)]) == 2
    assert "final_mlp.0" in capsys.readouterr().err


@pytest.fixture
def optim(goldens: Path) -> dict:
    return json.loads((goldens / "vlbert" / "optim" / "config.json").read_text())


def learning_rates(optim: dict, **settings: object) -> list[float]:
    parameter = torch.zeros(2, requires_grad=True)
    optimizer = make_optimizer(
        "vlbert_adamw",
        [parameter],
        optim["lr"],
        optim["t_total"],
        warmup=optim["warmup_steps"] / optim["t_total"],
        **settings,
    )
    rates = []
    for _ in optim["lr_used_per_step"]:
        parameter.grad = torch.ones(2)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_the_learning_rates_are_those_of_both_schedules(optim):
    assert learning_rates(optim) == pytest.approx(optim["lr_used_per_step"])
    steps = optim["multistep"]
    found = learning_rates(
        optim,
        schedule="steps",
        milestones=steps["milestones"],
        gamma=steps["gamma"],
        warmup_factor=steps["warmup_factor"],
    )
    assert found == pytest.approx(steps["lr_after_step"])


@pytest.mark.parametrize("schedule", ["linear", "steps"])
def test_the_optimiser_continues_exactly_from_its_state(optim, schedule):
    def build():
        torch.manual_seed(0)
        parameters = [torch.randn(3, requires_grad=True), torch.randn(2, requires_grad=True)]
        return parameters, make_optimizer(
            "vlbert_adamw",
            parameters,
            0.1,
            8,
            schedule=schedule,
            milestones=(3,) if schedule == "steps" else (),
        )

    def update(parameters, optimizer, number):
        for place, parameter in enumerate(parameters):
            # The second one has no gradient at first, so that it counts other updates.
            late = place == 1 and number < 2
            parameter.grad = None if late else torch.full_like(parameter, 1.0 + number)
        optimizer.step()

    whole, optimizer = build()
    for number in range(6):
        update(whole, optimizer, number)
        if number == 3:
            halfway = [p.detach().clone() for p in whole]
            state = optimizer.state_dict()
            state = {
                **state,
                "optimizer": {
                    **state["optimizer"],
                    "state": {
                        k: {
                            n: x.clone() if isinstance(x, torch.Tensor) else x for n, x in v.items()
                        }
                        for k, v in state["optimizer"]["state"].items()
                    },
                },
            }
    again, optimizer = build()
    with torch.no_grad():
        for parameter, value in zip(again, halfway, strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(state)
    for number in (4, 5):
        update(again, optimizer, number)
    assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))
