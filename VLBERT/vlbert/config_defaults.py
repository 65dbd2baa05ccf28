"""Every key of a VL-BERT config and its default.

The keys are those of VL-BERT (vqa and pretrain) and of the derived adaptive-finetuning repository,
with their defaults; a default also says of which type a value is. `ADDED` marks what this code
adds. Three defaults differ from the derived repository: FINETUNE_STRATEGY is `standard`, so that a
config of VL-BERT itself, which has no such key, trains as VL-BERT does; POLICY.OUTPUT_SIZE is 0,
as the number of decisions follows from the layers; and the visual LayerNorm gains of the policy
start at 1, since at 0 it would not see the image before they are learned.
"""

from __future__ import annotations

import math
from typing import Any

from common.adapt.attention import ATTENTION_LR
from common.adapt.executors import AUTO, TRAINING_EXECUTORS
from common.modules.attention import NORMALISERS, SPANS
from common.training.options import POLICY_TRAINING_CHOICES

Defaults = dict[str, Any]

IMAGE_AND_BERT: Defaults = {
    "BLIND": False,
    "NO_GROUNDING": False,
    "PARTIAL_PRETRAIN": "",
    "PARTIAL_PRETRAIN_PREFIX_CHANGES": (),
    "FOR_MASK_VL_MODELING_PRETRAIN": False,
    "NO_OBJ_ATTENTION": False,
    "IMAGE_FEAT_PRECOMPUTED": False,
    "IMAGE_NUM_LAYERS": 50,
    "IMAGE_C5_DILATED": False,
    "IMAGE_STRIDE_IN_1x1": False,
    "PIXEL_MEANS": (),
    "PIXEL_STDS": (),
    "IMAGE_PRETRAINED": "",
    "IMAGE_PRETRAINED_EPOCH": 0,
    "IMAGE_FROZEN_BACKBONE_STAGES": (1, 2),
    "IMAGE_FROZEN_BN": True,
    "IMAGE_FINAL_DIM": 512,
    "IMAGE_SEMANTIC": False,
    "OUTPUT_CONV5": False,
    "BERT_MODEL_NAME": "bert-base-uncased",
    "BERT_PRETRAINED": "",
    "BERT_PRETRAINED_EPOCH": 0,
    "BERT_FROZEN": True,
    "BERT_ALIGN_QUESTION": True,
    "BERT_ALIGN_ANSWER": True,
    "BERT_USE_LAYER": -2,
    "BERT_WITH_NSP_LOSS": False,
    "BERT_WITH_MLM_LOSS": False,
    "ENABLE_CNN_REG_LOSS": True,
    "CNN_LOSS_WEIGHT": 1.0,
    "ANS_LOSS_WEIGHT": 1.0,
    "ANS_LOSS_TYPE": "bce",
    "REPLACE_OBJECT_CHANGE_LABEL": True,
    "CLASSIFIER_TYPE": "2fc",
    "CLASSIFIER_PRETRAINED": False,
    "CLASSIFIER_HIDDEN_SIZE": 1024,
    "CLASSIFIER_DROPOUT": 0.1,
    "CLASSIFIER_SIGMOID": False,
    "CLASSIFIER_SIGMOID_LOSS_POSITIVE_WEIGHT": 1.0,
}

VLBERT: Defaults = {
    "input_size": 1280,
    "input_transform_type": 1,
    "word_embedding_frozen": False,
    "obj_pos_id_relative": True,
    "hidden_size": 512,
    "visual_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 3,
    "vocab_size": 30522,
    "initializer_range": 0.02,
    "visual_scale_text_init": 0.0,
    "visual_scale_object_init": 0.0,
    "visual_ln": False,
    "object_word_embed_mode": 2,
    "with_pooler": False,
    "position_padding_idx": -1,
}

OPTIMISER: Defaults = {
    "OPTIMIZER": "SGD",
    "LR": 0.1,
    "LR_SCHEDULE": "step",
    "WD": 0.0001,
    "MOMENTUM": 0.9,
    "WARMUP": False,
    "WARMUP_METHOD": "linear",
    "WARMUP_FACTOR": 1.0 / 3,
    "WARMUP_STEPS": 1000,
    "CLIP_GRAD_NORM": -1.0,
    "GRAD_ACCUMULATE_STEPS": 1,
    "FP16": False,
}

TRAIN: Defaults = OPTIMISER | {
    "LR_MULT": (),
    "VISUAL_SCALE_TEXT_LR_MULT": 1.0,
    "VISUAL_SCALE_OBJECT_LR_MULT": 1.0,
    "VISUAL_SCALE_CLIP_GRAD_NORM": -1.0,
    "SHUFFLE": True,
    "FLIP_PROB": 0.5,
    "BATCH_IMAGES": 1,
    "ASPECT_GROUPING": True,
    "RESUME": False,
    "AUTO_RESUME": True,
    "BEGIN_EPOCH": 0,
    "END_EPOCH": 0,
    "LR_FACTOR": 0.1,
    "LR_STEP": (),
    "FP16_LOSS_SCALE": 128.0,
    "LOSS_LOGGERS": (
        ("ans_loss", "AnsLoss"),
        ("loss_k", "ConstrainKLoss"),
        ("loss_d", "DeterminsticPolicyLoss"),
    ),
}

DATASET: Defaults = {
    "DATASET": "",
    "ANSWER_VOCAB_FILE": "",
    "ANSWER_VOCAB_SIZE": 3129,
    "LABEL_INDEX_IN_BATCH": -1,
    "APPEND_INDEX": False,
    "TASK": "Q2AR",
    "BASIC_ALIGN": False,
    "DATASET_PATH": "",
    "ROOT_PATH": "",
    "TRAIN_IMAGE_SET": "",
    "VAL_IMAGE_SET": "",
    "TEST_IMAGE_SET": "",
    "TRAIN_ANNOTATION_FILE": "",
    "VAL_ANNOTATION_FILE": "",
    "TEST_ANNOTATION_FILE": "",
    "ONLY_USE_RELEVANT_DETS": True,
    "ADD_IMAGE_AS_A_BOX": True,
    "ZIP_MODE": False,
    "CACHE_MODE": False,
    "IGNORE_DB_CACHE": True,
    "MASK_SIZE": 14,
    "QA2R_NOQ": False,
    "QA2R_AUG": False,
    "BOXES": "36",
    "USE_IMDB": True,
    "TOY": False,
    "TOY_SAMPLES": 128,
}

TOP: Defaults = {
    "RNG_SEED": -1,
    "OUTPUT_PATH": "",
    "MODULE": "",
    "POLICY_MODULE": "",
    "GPUS": "",
    "LOG_FREQUENT": 50,
    "VAL_FREQUENT": 1,
    "CHECKPOINT_FREQUENT": 1,
    "MODEL_PREFIX": "",
    "NUM_WORKERS_PER_GPU": 4,
    "SCALES": (),
    "FINETUNE_STRATEGY": "standard",
    "VERSION": "adaptive-finetune",
    "USE_CONSTRAIN_K_LOSS": False,
    "CONSTRAIN_K_NUM_BLOCKS": 4.0,
    "CONSTRAIN_K_SCALE": 1.0,
    "USE_DETERMINISTIC_POLICY_LOSS": False,
    "DETERMINISTIC_POLICY_SCALE": 1.0,
    "POLICY_GLOBAL_DECISION": False,
}

PRETRAIN_NETWORK: Defaults = {
    "WITH_REL_LOSS": True,
    "WITH_MLM_LOSS": True,
    "WITH_MVRC_LOSS": True,
    "MLM_LOSS_NORM_IN_BATCH_FIRST": False,
    "MVRC_LOSS_NORM_IN_BATCH_FIRST": False,
    "MASK_RAW_PIXELS": True,
}
PRETRAIN_VLBERT: Defaults = {
    "from_scratch": False,
    "pos_embedding_frozen": False,
    "with_pooler": True,
    "visual_region_classes": 1601,
}

# Path of a key → its default. The original has none of these.
ADDED: Defaults = {
    "BASE": "",
    "SIZE": "",
    "HOLDOUT": 0.1,
    "NETWORK.VLBERT.from_scratch": False,
    "NETWORK.IMAGE_DROPOUT": 0.1,
    "DATASET.ANSWER_SPELLING": "normalised",
    "DATASET.IMPORT_FEATURES": True,
    "TRAIN.WARMUP_SHARE": 0.0,
    "POLICY.WARMUP_SHARE": 0.0,
    "POLICY.NETWORK": "published",
    "POLICY.EVALUATION": "argmax",
    "POLICY.TRAINING": "published",
    "POLICY.START": 0,
    "POLICY.HOLD": 0.0,
    "POLICY.REVIEW": 0,
    "POLICY.HEAD_WARMUP": 0.0,
    "POLICY.TEMPERATURE": 5.0,
    "POLICY.TEMPERATURE_END": 5.0,
    "POLICY.INITIAL_SHARE": 0.5,
    "POLICY.EXECUTOR": AUTO,
    "ATTENTION.NORMALISER": "softmax",
    "ATTENTION.SPAN": "none",
    "ATTENTION.SPAN_RAMP": 0.25,
    "ATTENTION.SPAN_INIT": 1.0,
    "ATTENTION.SPAN_LOSS": 0.0,
    "ATTENTION.ALPHA_INIT": 1.1,
    "ATTENTION.LR": ATTENTION_LR,
    "ATTENTION.SPAN_POLICY": False,
    "ATTENTION.SPAN_BATCH": 0,
    "LAYERDROP.RATE": 0.0,
    "LAYERDROP.COUNT": 0,
}
ADDED_MEANING = {
    "BASE": "a config, relative to this one, whose values hold where this one gives none",
    "SIZE": "name of the model's size in tables (default: base or large, by hidden_size)",
    "HOLDOUT": "share of the training images that is held out to choose the best epoch",
    "NETWORK.VLBERT.from_scratch": "start what no file brings from random weights (a key of "
    "pretraining, here of VQA as well)",
    "NETWORK.IMAGE_DROPOUT": "on the features of regions (the original: always 0.1)",
    "DATASET.ANSWER_SPELLING": "normalised: answers are compared as the official metric does; "
    "verbatim: as typed, as the original has it",
    "DATASET.IMPORT_FEATURES": "import feature files into a store once; else read them each time",
    "TRAIN.WARMUP_SHARE": "above 0, instead of WARMUP_STEPS: this share of all updates",
    "POLICY.WARMUP_SHARE": "likewise",
    "POLICY.NETWORK": "published, small, shared, random:SHARE or oracle:KIND",
    "POLICY.EVALUATION": "argmax, sample or global",
    "POLICY.TRAINING": "published, started or automatic: what holds where the next keys, and "
    "TEMPERATURE, are not given; automatic is started where a policy network chooses between "
    "frozen and finetuned parts without a budget, else published",
    "POLICY.START": "passes in which the policy is taught where the pretrained model fails",
    "POLICY.HOLD": "share of all steps in which the policy gets no gradient",
    "POLICY.REVIEW": "passes after every held epoch that teach which branch is the better one",
    "POLICY.HEAD_WARMUP": "share of all steps in which a new head learns alone (not given: 0.1 "
    "where the head is new and the policy is taught)",
    "POLICY.TEMPERATURE": "of the Gumbel-softmax at the start of training",
    "POLICY.TEMPERATURE_END": "and at its end (not given: as at the start)",
    "POLICY.INITIAL_SHARE": "probability of decision 1 before training",
    "POLICY.EXECUTOR": "auto, exact, grouped, sampled or dense",
    "ATTENTION.NORMALISER": "softmax, entmax (its α is learned), entmax15, sparsemax or published",
    "ATTENTION.SPAN": "none, keys (a span of the first keys), distance (which is keys here, as "
    "text and regions are one sequence) or published",
    "ATTENTION.SPAN_POLICY": "a small network reads the spans from the pair",
    "ATTENTION.SPAN_BATCH": "of published spans, which belong to places in a batch: its size",
    "ATTENTION.SPAN_RAMP": "share of the keys over which a weight falls from 1 to 0",
    "ATTENTION.SPAN_INIT": "share of the keys before training",
    "ATTENTION.SPAN_LOSS": "weight of the mean span in the loss",
    "ATTENTION.ALPHA_INIT": "of entmax before training",
    "LAYERDROP.RATE": "probability that training leaves a layer out",
    "LAYERDROP.COUNT": "instead, so many layers",
    "ATTENTION.LR": "learning rate of spans and α, which does not depend on the batch",
}

PRETRAIN_ADDED: Defaults = {
    "DATASET.WITH_ANSWERS": False,
    "DATASET.ANSWER_MASK_RATE": 0.15,
    "DATASET.MASK_QUESTIONS": True,
    "DATASET.REGION_CLASSES": "object",
}
PRETRAIN_ADDED_MEANING = {
    "DATASET.WITH_ANSWERS": "easy_vqa_captions: questions with their answers are captions too",
    "DATASET.ANSWER_MASK_RATE": "share of the words of such answers that is masked",
    "DATASET.MASK_QUESTIONS": "words and regions of such questions are masked too; false: they are "
    "read as in VQA, all words and regions shown and [MASK] for the answer",
    "DATASET.REGION_CLASSES": "easy_vqa_captions: object, or object_attribute: every pair of an "
    "object and an attribute class is a class",
}

# Keys whose type a default does not show.
LISTS: dict[str, type] = {
    "SCALES": int,
    "PIXEL_MEANS": float,
    "PIXEL_STDS": float,
    "LR_STEP": float,
    "IMAGE_FROZEN_BACKBONE_STAGES": int,
    "FROZEN_LAYERS": int,
    "PARTIAL_PRETRAIN_PREFIX_CHANGES": str,
}
CHOICES: dict[str, tuple[str, ...]] = {
    "OPTIMIZER": ("SGD", "Adam", "AdamW"),
    "LR_SCHEDULE": ("step", "triangle", "plateau"),
    "WARMUP_METHOD": ("linear", "constant"),
    "CLASSIFIER_TYPE": ("2fc", "1fc", "mlm"),
    "hidden_act": ("gelu", "relu", "swish"),
    "BOXES": ("36", "10-100ada"),
    "ANS_LOSS_TYPE": ("bce", "ce"),
    "ANSWER_SPELLING": ("normalised", "verbatim"),
    "REGION_CLASSES": ("object", "object_attribute"),
    "EVALUATION": ("argmax", "sample", "global"),
    "EXECUTOR": TRAINING_EXECUTORS,
    "NORMALISER": NORMALISERS,
    "SPAN": SPANS,
    "TRAINING": POLICY_TRAINING_CHOICES,
}
# Key → lowest and highest value, at every level.
LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        (
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "CLASSIFIER_DROPOUT",
            "IMAGE_DROPOUT",
        ),
        (0, 1),
    ),
    **dict.fromkeys(
        (
            "hidden_size",
            "visual_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "CLASSIFIER_HIDDEN_SIZE",
            "LOG_FREQUENT",
            "TOY_SAMPLES",
        ),
        (1, math.inf),
    ),
    **dict.fromkeys(
        (
            "NUM_WORKERS_PER_GPU",
            "initializer_range",
            "LR",
            "WD",
            "MOMENTUM",
            "LR_FACTOR",
            "WARMUP_FACTOR",
            "CONSTRAIN_K_NUM_BLOCKS",
            "CONSTRAIN_K_SCALE",
            "DETERMINISTIC_POLICY_SCALE",
        ),
        (0, math.inf),
    ),
    **dict.fromkeys(("TEMPERATURE", "TEMPERATURE_END"), (1e-6, math.inf)),
    **dict.fromkeys(("START", "REVIEW"), (0, math.inf)),
    **dict.fromkeys(("HOLD", "HEAD_WARMUP", "WARMUP_SHARE"), (0, 1)),
    "INITIAL_SHARE": (1e-6, 1 - 1e-6),
}


def defaults(pretraining: bool) -> Defaults:
    """All keys with their defaults, nested as in a config.

    Args:
        pretraining: Of a config for pretraining; otherwise for VQA.
    """
    evaluation = {"SHUFFLE": False, "FLIP_PROB": 0.0, "BATCH_IMAGES": 1}
    values: Defaults = dict(TOP)
    values["DATASET"] = dict(DATASET)
    values["NETWORK"] = IMAGE_AND_BERT | {"VLBERT": VLBERT | {"FROZEN_LAYERS": ()}}
    values["TRAIN"] = dict(TRAIN)
    values["VAL"], values["TEST"] = evaluation, evaluation | {"TEST_EPOCH": 0}
    visible = {"visual_scale_text_init": 1.0, "visual_scale_object_init": 1.0}
    values["ATTENTION"], values["LAYERDROP"] = {}, {}
    values["POLICY"] = IMAGE_AND_BERT | OPTIMISER | {"OUTPUT_SIZE": 0, "VLBERT": VLBERT | visible}
    if pretraining:
        values["DATASET"] |= {"SEQ_LEN": 64, "MIN_SEQ_LEN": 0}
        values["NETWORK"] |= PRETRAIN_NETWORK
        values["NETWORK"]["VLBERT"] |= PRETRAIN_VLBERT
        values["TRAIN"]["LOSS_LOGGERS"] = (
            ("relationship_loss", "RelLoss"),
            ("mlm_loss", "MLMLoss"),
            ("mvrc_loss", "MVRCLoss"),
        )
    for path, value in (ADDED | (PRETRAIN_ADDED if pretraining else {})).items():
        *sections, key = path.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[key] = value
    return values
