"""Runs the golden cases of LXMERT: our models on the original's weights and inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from common.parity import gradients
from common.tasks.vqa import vqa_loss
from common.training.weights import load_into
from lxrt.modeling import PretrainingModel, VQAModel
from lxrt.pretraining_losses import pretraining_losses, total_loss
from lxrt.sizes import LxmertConfig

PRETRAINING_LABELS = {
    "masked_lm_labels": "word_labels",
    "matched_label": "matched_label",
    "obj_labels": "obj_labels",
    "obj_confs": "obj_conf",
    "attr_labels": "attr_labels",
    "attr_confs": "attr_conf",
    "feat_targets": "feat_target",
    "feat_mask": "feat_mask",
    "ans": "answer_label",
}


def model_inputs(inputs: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """Arguments of `LXRTModel.forward` from a case's inputs (B, …)."""
    return {
        "input_ids": inputs["input_ids"],
        "input_mask": inputs["input_mask"],
        "segment_ids": inputs.get("segment_ids"),
        "features": inputs["feats"],
        "boxes": inputs["boxes"],
        "region_mask": inputs.get("visual_attention_mask"),
    }


def found_gradients(model: nn.Module, wanted: list[str]) -> dict[str, Tensor]:
    """`grad.<parameter>` for those that are wanted, and `grad_total_norm`."""
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    return gradients(model, wanted, "grad.") | {"grad_total_norm": torch.stack(norms).norm()}


def run_vqa(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor], wanted: list[str]
) -> dict[str, Tensor]:
    """Outputs, loss and gradients of the VQA model (kind `lxmert_vqa`)."""
    model = VQAModel(LxmertConfig.from_dict(config)).eval()
    model.bert.encoder.set_reads(("lang", "vision"))
    load_into(model, weights, what="golden case")
    outputs = model.bert(**model_inputs(inputs))
    logits = model.logit_fc(outputs.pooled)
    found = {
        "lang_output": outputs.lang,
        "vision_output": outputs.vision,
        "pooled_output": outputs.pooled,
        "logits": logits,
    }
    if "target" in inputs:
        found["loss"] = vqa_loss(logits, inputs["target"])
        found["loss"].backward()
        found |= found_gradients(model, wanted)
    return found


def run_pretraining(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor], wanted: list[str]
) -> dict[str, Tensor]:
    """Head outputs, losses and gradients of the pretraining model (kind `lxmert_pretrain`)."""
    losses = tuple(config.get("visual_losses", "obj,attr,feat").split(","))
    model = PretrainingModel(LxmertConfig.from_dict(config), losses).eval()
    load_into(model, weights, what="golden case")
    encoded: list[Any] = []
    model.bert.register_forward_hook(lambda module, args, output: encoded.append(output))
    heads = model(**model_inputs(inputs))
    labels = {
        ours: inputs[theirs] for theirs, ours in PRETRAINING_LABELS.items() if theirs in inputs
    }
    parts = pretraining_losses(heads, labels)
    total = total_loss(parts)
    total.backward()
    outputs = encoded[0]
    found = {
        "lang_output": outputs.lang,
        "vision_output": outputs.vision,
        "pooled_output": outputs.pooled,
        "lm_logits": heads["words"],
        "matched_logits": heads["matched"],
        "qa_logits": heads["answers"],
        "losses": torch.stack(list(parts.values()))[None],
        "total_loss": total,
    }
    names = {"obj": "obj_logits", "attr": "attr_logits", "feat": "feat_pred"}
    found |= {names[name]: heads[name] for name in losses}
    return found | found_gradients(model, wanted)
