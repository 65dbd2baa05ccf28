"""Runs the golden cases of LXMERT: our models on the original's weights and inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from common.adapt.attention import LearnedSpans, set_attention
from common.adapt.layerdrop import prune
from common.modules.attention import AttentionOptions
from common.parity import gradients
from common.tasks.vqa import vqa_loss
from common.training.weights import load_into
from lxrt.adaptive_transformer import own_names, published_attention
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


ADAPTIVE = ("plain", "adaptive", "sparse", "adaptive_sparse")  # what adaptive_transformer can be


def run_adaptive(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor], wanted: list[str]
) -> dict[str, Tensor]:
    """Outputs, losses and gradients of the published adaptive attention, and of pruned models.

    Args:
        config: sizes under `model`, under `keep` the layers of each stack that pruning keeps.
        weights: of the original, with its names for spans and α.
        inputs: of `model_inputs`, and `target`.
        wanted: names of what is compared, `<variant>.…`.
    """
    found: dict[str, Tensor] = {}
    for variant in ADAPTIVE:
        model = _adaptive_model(config, weights, variant)
        outputs = model.bert(**model_inputs(inputs))
        logits = model.logit_fc(outputs.pooled)
        bce = vqa_loss(logits, inputs["target"])
        losses = {"bce_loss": bce}
        if (span := LearnedSpans(model).loss(None)) is not None:
            losses["span_loss"] = span
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        values = losses | {
            "total_loss": total,
            "lang_output": outputs.lang,
            "vision_output": outputs.vision,
            "pooled_output": outputs.pooled,
            "logits": logits,
        }
        named = dict(model.named_parameters())
        prefix = f"{variant}.grad."
        for name in (n for n in wanted if n.startswith(prefix)):
            (own,) = own_names({name.removeprefix(prefix): logits})
            gradient = named[own].grad
            assert gradient is not None
            values[name.removeprefix(f"{variant}.")] = gradient
        found |= {f"{variant}.{name}": value for name, value in values.items()}
    return found | _pruned(config, weights, inputs)


def _adaptive_model(config: dict[str, Any], weights: dict[str, Tensor], variant: str) -> VQAModel:
    """With the weights of one variant out of those of all."""
    left_out = [
        kind
        for kind, word in (("adaptive_span", "adaptive"), ("entmax_alpha", "sparse"))
        if word not in variant.split("_")
    ]
    own = {n: x for n, x in weights.items() if not any(f".{kind}." in n for kind in left_out)}
    sizes = config["model"]
    counts = sizes["layer_sizes"]
    layers = {f"{short}_layers": counts[name] for short, name in LAYER_SIZES.items()}
    model = VQAModel(LxmertConfig.from_dict(sizes | layers)).eval()
    set_attention(model, published_attention(own) or AttentionOptions())
    model.bert.encoder.set_reads(("lang", "vision"))
    load_into(model, own_names(own), what="golden case")
    return model


LAYER_SIZES = {"l": "lang", "x": "cross", "r": "vision"}
STACKS = {"layer": "lang", "x_layers": "cross", "r_layers": "vision"}


def _pruned(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, stacks in config["keep"].items():
        model = _adaptive_model(config, weights, "plain")
        kept = [f"{STACKS[stack]}.{n + 1}" for stack, places in stacks.items() for n in places]
        prune(model, ",".join(kept))
        outputs = model.bert(**model_inputs(inputs))
        found[f"{name}.vision_output"] = outputs.vision
        found[f"{name}.pooled_output"] = outputs.pooled
        found[f"{name}.logits"] = model.logit_fc(outputs.pooled)
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
