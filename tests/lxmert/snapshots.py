"""Tiny LXMERT models and files of them as upstream and as we write them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from lxrt.modeling import PretrainingModel, VQAModel
from lxrt.sizes import LxmertConfig

KNOWN = ["cat", "man", "1", "2", "gray", "yes", "no"]
ANSWERS = ["yes", "a man", "two", "unknown thing", "grey", ""]
TINY = {
    "vocab_size": 30,
    "hidden_size": 12,
    "num_attention_heads": 3,
    "intermediate_size": 16,
    "visual_feat_dim": 5,
    "max_position_embeddings": 10,
    "obj_id_num": 4,
    "attr_id_num": 3,
}


def config(answers: int, layers: tuple[int, int, int] = (2, 2, 1), **changes: int) -> LxmertConfig:
    """A tiny model with (language, cross, vision) layers."""
    sizes = dict(zip(("l_layers", "x_layers", "r_layers"), layers, strict=True))
    return LxmertConfig(**(TINY | sizes | {"num_answers": answers} | changes))


def pretraining_weights(**changes: int) -> dict[str, Tensor]:
    """A pretraining snapshot as upstream saves it, the tied decoder included."""
    torch.manual_seed(1)
    model = PretrainingModel(config(len(KNOWN), **changes))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return dict(model.state_dict())


def fresh(layers: tuple[int, int, int] = (2, 2, 1), answers: int = len(ANSWERS)) -> VQAModel:
    torch.manual_seed(2)
    return VQAModel(config(answers, layers))


def upstream_file(folder: Path, weights: dict[str, Tensor], prefix: str = "module.") -> Path:
    """`folder/model_LXRT.pth` as upstream's torch.save writes it; returns the prefix to give."""
    torch.save({prefix + name: x for name, x in weights.items()}, folder / "model_LXRT.pth")
    return folder / "model"


def all_answers(folder: Path) -> Path:
    """Upstream's lxmert/all_ans.json below a data folder."""
    (folder / "lxmert").mkdir()
    rows = [{"ans": answer, "dsets": ["vqa"]} for answer in KNOWN]
    (folder / "lxmert" / "all_ans.json").write_text(json.dumps(rows))
    return folder


def encoder_is(model: VQAModel, weights: dict[str, Tensor], tolerance: float = 0.0) -> None:
    """The encoder of the model has the values of `bert.*` in a snapshot."""
    own = [n for n in model.bert.state_dict() if ".adaptive." not in n]
    assert len(own) > 50
    for name in own:
        value = model.bert.state_dict()[name]
        torch.testing.assert_close(
            value,
            weights[f"bert.{name}"],
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text, n=name: f"{n}: {text}",
        )
