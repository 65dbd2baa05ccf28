"""Runs the golden cases of ViLBERT: our models on the original's weights and inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.parity import gradients
from common.reading import read_json
from common.tasks.vqa import vqa_loss
from common.training.weights import load_into
from vilbert.heads import BertForMultiModalPreTraining, VILBertForVLTasks, output_of
from vilbert.losses import option_loss, pretraining_losses, region_choice_loss
from vilbert.modeling import BertModel
from vilbert.sizes import ViLBertConfig

Weights = Mapping[str, Tensor]
OTHER_FUSION = {"mul": "sum", "sum": "mul"}
QUERY = "bert.encoder.layer.1.attention.self.query.weight"
KEY = "bert.encoder.c_layer.0.biattention.key1.weight"
# Gradients that are computed where a case does not say which ones it wants.
LISTED = {
    "vqa": (
        *("bert.embeddings.word_embeddings.weight", QUERY, KEY, "bert.t_pooler.dense.bias"),
        "bert.v_embeddings.image_location_embeddings.weight",
        "bert.encoder.v_layer.0.intermediate.dense.weight",
        "bert.encoder.c_layer.1.biOutput.dense2.weight",
        *(f"vil_prediction.main.{n}" for n in ("0.weight_g", "0.weight_v", "3.bias")),
    ),
    "vl_logit": (QUERY, KEY),
    "v_logit": (QUERY, KEY),
    "fixed_t_layer": (QUERY,),
}
OF_PRETRAINING = (
    "bert.embeddings.word_embeddings.weight",
    "bert.encoder.layer.0.output.dense.weight",
    "bert.encoder.c_layer.1.biattention.value2.weight",
    "cls.imagePredictions.transform.dense.weight",
)


def model_inputs(inputs: Mapping[str, Tensor], masks: bool = True) -> dict[str, Tensor | None]:
    """Arguments of `BertModel.forward` from a case's inputs (B, …); `masks` and types or none."""
    found = {"input_ids": "input_ids", "features": "features", "places": "spatials"}
    if masks:
        found |= {
            "token_type_ids": "segment_ids",
            "attention_mask": "input_mask",
            "image_attention_mask": "image_mask",
        }
    return {ours: inputs[theirs] for ours, theirs in found.items()}


class Case:
    """One case: sizes, weights, inputs, and which tensors are wanted."""

    def __init__(
        self,
        values: dict[str, Any],
        weights: dict[str, Tensor],
        inputs: dict[str, Tensor],
        wanted: list[str],
    ) -> None:
        meta = Path(values["folder"]) / "meta.json"
        self.meta: dict[str, Any] = read_json(meta) if meta.exists() else {}
        labels = len(weights["vil_prediction.main.3.bias"])
        known = {k: v for k, v in values.items() if k not in ("kind", "folder", "tolerances")}
        self.config = replace(ViLBertConfig.from_upstream(known), num_labels=labels)
        self.weights, self.inputs, self.wanted = weights, inputs, wanted

    def tasks(self, **changes: Any) -> VILBertForVLTasks:
        """The model with all heads and the case's weights."""
        model = VILBertForVLTasks(replace(self.config, **changes)).eval()
        load_into(model, self.weights, what="golden case")
        return model

    def bert(self, **changes: Any) -> BertModel:
        """The bare model."""
        return self.tasks(**changes).bert

    def gradients(self, model: nn.Module, variant: str) -> dict[str, Tensor]:
        """Those that are wanted of a variant of the model."""
        listed = LISTED.get(variant, OF_PRETRAINING)
        return gradients(model, self.wanted, f"{variant}/grad/", listed)


def run(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor], wanted: list[str]
) -> dict[str, Tensor]:
    """Outputs, losses and gradients of all variants of the model (kind `vilbert`)."""
    case = Case(config, weights, inputs, wanted)
    with torch.no_grad():
        found = {**encoder_outputs(case), **head_outputs(case)}
    return found | task_losses(case) | pretraining(case)


def encoder_outputs(case: Case) -> dict[str, Tensor]:
    """Streams, pooled vectors, attention; without masks, without connections, all pairs."""
    inputs = model_inputs(case.inputs)
    found = case.bert()(**inputs, connected=True, attention=True)
    tensors = _named("bert", found) | {
        "bert/embedding_t": found.embedded["lang"],
        "bert/embedding_v": found.embedded["vision"],
    }
    for place, state in enumerate(found.connected):
        tensors |= {
            f"bert/after_connection_{place}_t": state["lang"],
            f"bert/after_connection_{place}_v": state["vision"],
        }
    if "connection.1" in found.attention:
        first = found.attention["connection.1"]
        tensors |= {
            "bert/coattention0_text_over_image": first["lang"],
            "bert/coattention0_image_over_text": first["vision"],
        }
    tensors |= _named("bert_nomask", case.bert()(**model_inputs(case.inputs, masks=False)))
    alone = case.bert(with_coattention=False)(**inputs)
    tensors |= _named("without_coattention", alone)
    rows = case.meta.get("in_batch_pairs_rows", 3)
    few = {name: None if x is None else x[:rows] for name, x in inputs.items()}
    return tensors | _named("in_batch_pairs", case.bert(in_batch_pairs=True)(**few))


def _named(variant: str, found: Any) -> dict[str, Tensor]:
    return {
        f"{variant}/sequence_output_t": found.lang,
        f"{variant}/sequence_output_v": found.vision,
        f"{variant}/pooled_output_t": found.pooled_lang,
        f"{variant}/pooled_output_v": found.pooled_vision,
    }


def head_outputs(case: Case) -> dict[str, Tensor]:
    """The seven heads; with one caption for all images; with the other fusion."""
    inputs = model_inputs(case.inputs)
    row = case.meta.get("fast_mode_caption_row", 1)
    text = ("input_ids", "token_type_ids", "attention_mask")
    one = {k: x if x is None or k not in text else x[row : row + 1] for k, x in inputs.items()}
    other = OTHER_FUSION[case.config.fusion_method]
    variants = {
        "vltasks": output_of(case.tasks()(**inputs)),
        "fast_mode": output_of(case.tasks(fast_mode=True)(**one)),
        "other_fusion": output_of(case.tasks(fusion_method=other)(**inputs)),
    }
    return {
        f"{variant}/{name}": x for variant, found in variants.items() for name, x in found.items()
    }


def task_losses(case: Case) -> dict[str, Tensor]:
    """Losses and gradients of finetuning: answers, options, regions; with a fixed text layer."""
    inputs, given = model_inputs(case.inputs), case.inputs
    found: dict[str, Tensor] = {}
    for variant, changes in (
        *((name, {}) for name in ("vqa", "vl_logit", "v_logit")),
        ("fixed_t_layer", {"fixed_t_layer": 1}),
    ):
        model = case.tasks(**changes)
        heads = model(**inputs)
        if variant == "vl_logit":
            target = given["vl_logit_target"]
            loss = option_loss(heads.vil_logit, target, len(heads.vil_logit) // len(target))
        elif variant == "v_logit":
            loss = region_choice_loss(heads.vision_logit, given["v_logit_target"])
        else:
            loss = vqa_loss(heads.vil_prediction, given["vqa_target"])
        if variant == "vqa":
            chosen = heads.vil_prediction.argmax(1, keepdim=True)
            found["vqa/score_sum"] = given["vqa_target"].gather(1, chosen).sum()[None]
        loss.backward()
        found[f"{variant}/loss"] = loss[None]
        found |= case.gradients(model, variant)
    return found


def pretraining(case: Case) -> dict[str, Tensor]:
    """Scores, the three losses with both kinds of region targets, gradients of their sums."""
    given, found = case.inputs, dict[str, Tensor]()
    for variant, target in (
        ("pretrain_kl", "image_target"),
        ("pretrain_regress", "image_target_regress"),
    ):
        model = BertForMultiModalPreTraining(case.config).eval()
        own = {n: x for n, x in case.weights.items() if n.startswith(("bert.", "cls."))}
        load_into(model, own, what="golden case")
        heads = model(**model_inputs(given))
        labels = {
            "words": given["masked_lm_labels"],
            "region_label": given["image_label"],
            "region_target": given[target],
            "aligned": given["next_sentence_label"],
        }
        losses = pretraining_losses(heads, labels, features=variant == "pretrain_regress")
        torch.stack(list(losses.values())).sum().backward()
        found |= {f"{variant}/{name}": loss[None] for name, loss in losses.items()}
        found |= case.gradients(model, variant)
        found |= {
            "pretrain/prediction_scores_t": heads["words"],
            "pretrain/prediction_scores_v": heads["regions"],
            "pretrain/seq_relationship_score": heads["aligned"],
        }
    return found


PARITY = {"vilbert": run}
