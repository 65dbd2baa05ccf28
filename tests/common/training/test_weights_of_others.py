"""Files that are given as weights and are none, or whose names have grown a prefix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import CheckpointError
from common.training.weights import load_into, load_weights

WEIGHTS = {"head.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.ones(2)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>quota exceeded</html>", "a web page, not weights"),
        (b"\n  <html><body>login</body></html>", "a web page, not weights"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
    ],
)
def test_what_is_fetched_instead_of_weights_is_named(tmp_path: Path, content, reason):
    for name in ("model.pth", "model.safetensors", "model.model"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=reason) as error:
            load_weights(path)
        assert str(path) in str(error.value) and "run or build" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (torch.zeros(3), "holds a Tensor, not named weights"),
        (torch.tensor(0.0), "holds a Tensor, not named weights"),
        ([torch.zeros(3)], "holds a list, not named weights"),
        ({}, "holds a dict without entries"),
        ({"a": torch.eye(3).to_sparse()}, "a: sparse or quantised tensors"),
        ({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "quantised"),
        ({1: torch.ones(2)}, "names are no texts"),
    ],
)
def test_what_torch_saved_and_is_no_table_of_weights_is_refused(tmp_path: Path, content, reason):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=reason):
        load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model_state_dict": WEIGHTS, "epoch": 3}, ""),
        ({"state_dict": WEIGHTS, "optimizer": {}}, ""),
        ({f"_orig_mod.{name}": x for name, x in WEIGHTS.items()}, "'_orig_mod.' of torch.compile"),
        (
            {name.replace("head.", "head._orig_mod."): x for name, x in WEIGHTS.items()},
            "'_orig_mod.' of torch.compile",
        ),
    ],
)
def test_weights_are_found_where_others_put_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, said: str
):
    torch.save(content, tmp_path / "w.pth")
    found = load_weights(tmp_path / "w.pth")
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], x) for name, x in WEIGHTS.items())
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_with_their_place(bad):
    weights = {name: x.clone() for name, x in WEIGHTS.items()}
    weights["head.weight"][1, 2] = bad
    model = torch.nn.ModuleDict({"head": torch.nn.Linear(3, 2)})
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(CheckpointError, match=r"tensor 'head.weight' holds .* at \[1, 2\]"):
        load_into(model, weights, what="w.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
