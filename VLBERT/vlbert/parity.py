"""Runs the golden cases of VL-BERT: our networks on the original's weights and inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.data.tokenizer import Tokenizer
from common.errors import DataError
from common.modules.boxes import PIXEL, overlap
from common.modules.resnet import Bottleneck, stage
from common.modules.roi_align import roi_align
from common.parity import gradients
from common.tasks.vqa import vqa_loss
from common.training.optim import make_optimizer
from common.training.weights import load_into
from vlbert.boxes import coordinate_embedding
from vlbert.loading import answer_pieces, classifier_rows, plan_partial
from vlbert.modeling import VisualLinguisticBert, VLBertOutput
from vlbert.pretraining_losses import pretraining_losses
from vlbert.pretraining_network import (
    ResNetVLBERTForPretraining,
    VisualLinguisticBertForPretraining,
)
from vlbert.sizes import EncoderConfig, ImageConfig, NetworkConfig, PretrainingConfig, SpecialTokens
from vlbert.vqa_network import ResNetVLBERT

Tensors = dict[str, Tensor]
UNREACHED = -10000.0  # logits behind the end of the longest sequence
GRADIENT = "grad::"
ROI_SHAPES = ("roi_align_14x14_sr1", "roi_align_7x7_sr2", "roi_align_3x5_sr0")


def run_core(
    config: dict[str, Any], weights: Tensors, inputs: Tensors, wanted: list[str]
) -> Tensors:
    """Everything that the bare encoder computes (kind `core`)."""
    model = VisualLinguisticBert(EncoderConfig.from_upstream(config["vlbert"])).eval()
    load_into(model, weights, what="golden case")
    output = model(**inputs, all_layers=True, attention=True)
    packing = output.packing
    found = {
        "embedding_output": output.embedding,
        "attention_mask": packing.mask,
        "text_mask_new": packing.text,
        "object_mask_new": packing.objects,
        "encoded_last": output.hidden,
    }
    found |= {f"encoded_layer_{n}": x for n, x in enumerate(output.layers)}
    found |= {f"attention_probs_layer_{n}": x for n, x in enumerate(output.attention)}
    return separate(found | split_outputs(output, inputs))


def split_outputs(output: VLBertOutput, inputs: Tensors) -> Tensors:
    """Text (B, T, C), objects (B, K, C) and, where there is a pooler, pooled (B, C)."""
    found = {
        "text_split": output.text(inputs["text_input_ids"].shape[1]),
        "object_split": output.objects(),
    }
    return found if output.pooled is None else found | {"pooled": output.pooled}


def run_heads(
    config: dict[str, Any], weights: Tensors, inputs: Tensors, wanted: list[str]
) -> Tensors:
    """Encoder and its three pretraining heads (kind `pretraining_heads`)."""
    present = [
        any(name.startswith(head) for name in weights)
        for head in ("relationsip_head", "mlm_head", "mvrc_head")
    ]
    model = VisualLinguisticBertForPretraining(
        EncoderConfig.from_upstream(config["vlbert"]), *present
    ).eval()
    load_into(model, weights, what="golden case")
    output = model(**inputs)
    found = split_outputs(output, inputs)
    if present[0]:
        head = model.relationsip_head["caption_image_relationship"]
        found["relationship_logits"] = head(output.pooled)
    if present[1]:
        found["mlm_logits"] = model.mlm_head["predictions"](found["text_split"])
    if present[2]:
        found["mvrc_logits"] = model.mvrc_head(found["object_split"])
    return separate(found)


def run_vqa(
    config: dict[str, Any], weights: Tensors, inputs: Tensors, wanted: list[str]
) -> Tensors:
    """The VQA network with precomputed features (kind `vqa_net`)."""
    network = ResNetVLBERT(
        NetworkConfig.from_upstream(
            config["network"],
            config["answer_vocab_size"],
            SpecialTokens(*(config["cls_sep_mask_ids"])),
            inputs["boxes"].shape[-1] - 4,
        )
    ).eval()
    network.vlbert.encoder.set_reads(("hidden",))  # all positions are compared
    load_into(network, weights, what="golden case")
    output = network.run(inputs["boxes"], inputs["im_info"], inputs["question"])
    text, regions = output.text, output.regions
    found = {
        "text_input_ids": text.ids,
        "text_token_type_ids": text.types,
        "text_mask": text.mask,
        "text_visual_embeddings": output.text_visual,
        "obj_reps": regions.embedding,
        "object_mask": regions.mask,
        "obj_reps_raw": regions.features.masked_fill(~regions.mask[..., None], 0.0),
        "object_vl_embeddings": output.object_vl,
        "hidden": output.encoded.hidden,
        "logits": output.logits,
    }
    if "label" in inputs:
        found["loss"] = vqa_loss(output.logits, inputs["label"])
        best = output.logits.argmax(1, keepdim=True)
        found["soft_acc_sum"] = inputs["label"].gather(1, best).sum()
        found["loss"].backward()
        found |= found_gradients(network, config, wanted)
    return separate(found)


def run_pretraining(
    config: dict[str, Any], weights: Tensors, inputs: Tensors, wanted: list[str]
) -> Tensors:
    """A pretraining network, single or multitask (kind `pretrain_net`)."""
    multitask = config["module"].endswith("Multitask")
    settings = PretrainingConfig.from_upstream(
        config["network"], multitask, inputs["boxes"].shape[-1] - 4
    )
    network = ResNetVLBERTForPretraining(settings).eval()
    load_into(network, weights, what="golden case")
    outputs = network(
        inputs["boxes"],
        inputs["im_info"],
        inputs["text"],
        inputs["mvrc_ops"] == 1,
        inputs.get("aux_text"),
    )
    names = {
        "relationship": "relationship_label",
        "words": "mlm_labels",
        "aux_words": "aux_mlm_labels",
        "regions": "mvrc_labels",
    }
    labels = {ours: inputs[theirs] for ours, theirs in names.items() if theirs in inputs}
    losses = pretraining_losses(settings, outputs, labels)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    zero = inputs["im_info"].new_zeros(())
    found = {name: losses.get(name, zero) for name in ("relationship_loss", "mvrc_loss")}
    found["loss"] = total
    suffix = "_wvc" if multitask else ""
    found[f"mlm_loss{suffix}"] = losses.get("mlm_loss_wvc", zero)
    if multitask:
        found["mlm_loss_aux"] = losses.get("mlm_loss_aux", zero)
    if settings.relationship:
        found["relationship_logits"] = outputs["relationship"]
        found["relationship_label"] = labels["relationship"]
    if settings.words:
        texts = [("words", suffix)] + ([("aux_words", "_aux")] if multitask else [])
        length = max(labels[key].shape[1] for key, _ in texts)
        for key, end in texts:
            found[f"mlm_logits{end}"] = lengthen(outputs[key], length, UNREACHED)
            found[f"mlm_label{end}"] = lengthen(labels[key], length, -1)
    if settings.regions:
        length = labels["regions"].shape[1]
        found["mvrc_logits"] = lengthen(outputs["regions"], length, UNREACHED)
        cut = outputs["regions"].shape[1]
        found["mvrc_label"] = lengthen(labels["regions"][:, :cut], length, 0)
    return separate(found | found_gradients(network, config, wanted))


def lengthen(x: Tensor, length: int, value: float) -> Tensor:
    """(B, T, …) -> (B, length, …), filled up with `value`."""
    behind = [0, 0] * (x.ndim - 2) + [0, length - x.shape[1]]
    return F.pad(x, behind, value=value)


def found_gradients(
    network: nn.Module, config: Mapping[str, Any], wanted: Sequence[str]
) -> Tensors:
    """`grad::<parameter>` and, for the parameters of the case, sum and norm of each gradient.

    Which ones: those that are wanted, else all that the case lists.
    """
    order = config.get("grad_stats_order", [])
    result = gradients(network, wanted, GRADIENT, order)
    if order:
        found = gradients(network, (), GRADIENT, order)
        result["grad_stats"] = torch.tensor(
            [[x.double().sum(), x.norm()] for x in (found[GRADIENT + name] for name in order)]
        )
    return result


def run_boxes(
    config: dict[str, Any], weights: Tensors, inputs: Tensors, wanted: list[str]
) -> Tensors:
    """ROIAlign with its gradient, coordinate embedding, overlap (kind `roi_coord`).

    Names say the sizes: `roi_align_<P>x<Q>_sr<samples>`, `coord_embed_dim<waves>`.
    """
    names = [name for name in wanted if name.startswith("roi_align_")] or list(ROI_SHAPES)
    features = inputs["features"].requires_grad_()
    found: Tensors = {}
    for name in names:
        size, samples = name.removeprefix("roi_align_").split("_sr")
        rows, columns = map(int, size.split("x"))
        found[name] = roi_align(
            features, inputs["rois"], (rows, columns), config["spatial_scale"], int(samples)
        )
    for name, outer in inputs.items():
        case = name.removeprefix("grad_out_")
        if name.startswith("grad_out_") and f"roi_align_{case}" in found:
            (found[f"grad_features_{case}"],) = torch.autograd.grad(
                found[f"roi_align_{case}"], features, outer, retain_graph=True
            )
    boxes = inputs["coord_boxes"]
    for waves in config["coord_dims"]:
        found[f"coord_embed_dim{waves}"] = coordinate_embedding(boxes[:, :4], boxes[:, 4:], waves)
    found["iou_plus1"] = overlap(inputs["iou_a"], inputs["iou_b"], PIXEL)
    return separate(found)


def run_stage(
    config: dict[str, Any], weights: Tensors, inputs: Tensors, wanted: list[str]
) -> Tensors:
    """A stage of bottlenecks in several variants (kind `resnet_stage`)."""
    found: Tensors = {}
    for name, variant in config["variants"].items():
        module = stage(
            Bottleneck, config["inplanes"], config["planes"], config["blocks"], **variant
        ).eval()
        own = {
            key.removeprefix(f"{name}."): x
            for key, x in weights.items()
            if key.startswith(f"{name}.")
        }
        load_into(module, own, what=f"golden case, {name}")
        found[name] = module(inputs["x"])
        found[f"{name}_pooled"] = found[name].mean((2, 3))
    return separate(found)


def run_optimizer(
    config: dict[str, Any], weights: Tensors, inputs: Tensors, wanted: list[str]
) -> Tensors:
    """Parameters after every update with the given gradients (kind `optim`)."""
    names = sorted(name for name in inputs if name.startswith("p"))
    parameters = [inputs[name].clone().requires_grad_() for name in names]
    grads = [inputs[name.replace("p", "grads", 1)] for name in names]
    optimizer = make_optimizer(
        "vlbert_adamw",
        parameters,
        config["lr"],
        config["t_total"],
        warmup=config["warmup_steps"] / config["t_total"],
        weight_decay=config["weight_decay"],
        betas=tuple(config["betas"]),
        eps=config["eps"],
    )
    after: dict[str, list[Tensor]] = {name: [] for name in names}
    for number in range(len(grads[0])):
        for parameter, each in zip(parameters, grads, strict=True):
            parameter.grad = each[number].clone()
        optimizer.clip(config["clip_grad_norm"])
        optimizer.step()
        for name, parameter in zip(names, parameters, strict=True):
            after[name].append(parameter.detach().clone())
    return {f"{name}_after": torch.stack(steps) for name, steps in after.items()}


def network_of(names: Sequence[str], width: int, answers: int) -> ResNetVLBERT:
    """A VQA network, without memory, that a pretraining file with such names is loaded into."""
    layers = {
        name.split("encoder.layer.")[1].split(".")[0] for name in names if "encoder.layer." in name
    }
    encoder = EncoderConfig(
        hidden_size=width,
        visual_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=1,
        intermediate_size=width,
        visual_ln=any("visual_ln_text" in name for name in names),
    )
    with torch.device("meta"):
        return ResNetVLBERT(NetworkConfig(encoder, ImageConfig(final_dim=width), answers))


def run_partial_load(
    config: dict[str, Any], weights: Tensors, inputs: Tensors, wanted: list[str]
) -> Tensors:
    """Where the tensors of a pretraining file go, and answer rows (kind `partial_load`).

    Raises:
        DataError: a tensor goes elsewhere than in the original.
    """
    words = weights["word_embeddings.weight"]
    network = network_of(config["checkpoint_keys"], words.shape[1], len(config["answers"]))
    plan = plan_partial(network, config["checkpoint_keys"], config["prefix_changes"])
    checks = {
        "loaded": (plan.loaded, config["loaded"]),
        "dropped": (sorted(plan.dropped), sorted(config["unmatched_checkpoint_keys"])),
        "missing": (sorted(plan.missing), sorted(config["not_loaded_model_keys"])),
    }
    for what, (ours, theirs) in checks.items():
        if ours != theirs:
            raise DataError(f"partial loading differs in what is {what}: {ours}, not {theirs}")
    with TemporaryDirectory() as folder:
        Path(folder, "vocab.txt").write_text("\n".join(config["vocab"]) + "\n", encoding="utf-8")
        pieces = answer_pieces(config["answers"], Tokenizer(folder))
    return {"classifier_rows": classifier_rows(words, pieces)}


def separate(found: Tensors) -> Tensors:
    """The same tensors, none of which shares memory with another."""
    return {name: x.detach().clone() for name, x in found.items()}


PARITY: dict[str, Callable[[dict[str, Any], Tensors, Tensors, list[str]], Tensors]] = {
    "core": run_core,
    "pretraining_heads": run_heads,
    "vqa_net": run_vqa,
    "pretrain_net": run_pretraining,
    "roi_coord": run_boxes,
    "resnet_stage": run_stage,
    "optim": run_optimizer,
    "partial_load": run_partial_load,
}
