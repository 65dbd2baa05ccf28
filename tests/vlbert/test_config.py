"""Config files: the shipped ones, the keys of the originals, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import ConfigError
from vlbert.config import Config, all_keys, find_config, load_config
from vlbert.config_adaptive import adaptive_settings, check_output_size
from vlbert.config_defaults import (
    ADDED,
    ADDED_MEANING,
    PRETRAIN_ADDED,
    PRETRAIN_ADDED_MEANING,
    defaults,
)
from vlbert.sizes import HOME, NetworkConfig, PretrainingConfig

CFGS = HOME / "cfgs"
SHIPPED = sorted(CFGS.rglob("*.yaml"))
VQA = [path for path in SHIPPED if path.parent.name != "pretrain"]
# Published rows: file, strategy, SoftAcc on train and val (README of the derived repository).
ROWS = {
    "pretrained_frozen": ("Frozen", "61.47", "59.57"),
    "last_4": ("LastK", "76.92", "67.68"),
    "frozen_3_4_10_11": ("FrozenLayers", "80.78", "67.79"),
    "standard": ("standard", "83.40", "68.22"),
    "spottune_block": ("SpotTune_Block", "80.54", "67.90"),
    "spottune": ("SpotTune", "81.21", "68.14"),
    "blockdrop": ("BlockDrop", "81.69", "68.11"),
    "blockdrop_constrain_k4": ("BlockDrop", "73.99", "66.26"),
    "blockdrop_constrain_k4_global": ("BlockDrop", "77.25", "66.80"),
    "base_4_layers": ("standard", "77.09", "66.23"),
}


def name_of(path: Path) -> str:
    return path.relative_to(CFGS).as_posix()


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_shipped_config_is_read_and_its_header_says_what_to_expect(path: Path) -> None:
    header = path.read_text().split("\n---")[0].split("\nBASE:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    command = re.search(r"# Command: +(\S+) .*?(\S+)/train_end2end.py (\S+) output(.*)\n", header)
    assert command and HOME / command.group(3) == path
    assert command.group(1).startswith("./scripts/")
    assert command.group(4) == (" --dataset NAME" if path.parent.name == "own" else "")
    assert command.group(2) == ("pretrain" if path.parent.name == "pretrain" else "vqa")
    assert re.search(r"# Published: \S", header) and re.search(r"# Source: +\S", header)
    config = load_config(path)
    assert config.pretraining == (path.parent.name == "pretrain")
    json.dumps(config.to_dict())


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_shipped_config_gives_a_network(path: Path) -> None:
    config = load_config(path)
    if config.pretraining:
        PretrainingConfig.from_upstream(config.NETWORK, "Multitask" in config.MODULE)
        return
    network = NetworkConfig.from_upstream(config.NETWORK, config.DATASET.ANSWER_VOCAB_SIZE)
    assert network.encoder.num_hidden_layers == config.NETWORK.VLBERT.num_hidden_layers
    settings = adaptive_settings(config)
    assert set(config.DATASET.TRAIN_IMAGE_SET.split("+")) & {"val2014", "val", "minival"} == set()
    policy = NetworkConfig.from_upstream(config.POLICY, 2)
    assert policy.encoder.visual_scale_object_init == policy.encoder.visual_scale_text_init == 1
    if settings.strategy.adaptive:
        check_output_size(config, 12)


@pytest.mark.parametrize("name", ROWS)
def test_every_published_row_has_its_config(name: str) -> None:
    strategy, train, val = ROWS[name]
    path = CFGS / "vqa" / f"{name}.yaml"
    config, header = load_config(path), path.read_text()
    settings = adaptive_settings(config)
    assert f"{train}," in header and val in header and settings.strategy.name == strategy
    assert config.effective_lr(4) == pytest.approx(4e-5)
    assert (config.TRAIN.BATCH_IMAGES, config.TRAIN.END_EPOCH) == (16, 10)
    assert config.DATASET.TRAIN_IMAGE_SET == "train2014"
    assert adaptive_settings(load_config(CFGS / "vqa_cp" / path.name)).strategy.name == strategy
    expected = (4.0 if "constrain_k4" in name else None, "global" in name)
    assert (settings.budget.constrain_k, settings.options.policy_eval == "global") == expected
    assert settings.budget.deterministic_scale == 0
    assert settings.trainable_layers == ("last:4" if name == "last_4" else None)
    assert settings.frozen_layers == ((3, 4, 10, 11) if name == "frozen_3_4_10_11" else None)


def test_recipes_and_sizes_are_those_of_the_originals() -> None:
    large = load_config(CFGS / "vqa" / "large_4x16G_fp32.yaml")
    assert large.effective_lr(4) == pytest.approx(1.6e-4) and large.TRAIN.END_EPOCH == 5
    encoder = NetworkConfig.from_upstream(large.NETWORK, 3129).encoder
    assert (encoder.hidden_size, encoder.num_hidden_layers) == (1024, 24)
    pretraining = load_config(CFGS / "pretrain" / "base_prec_4x16G_fp32.yaml")
    assert pretraining.effective_lr(4) == pytest.approx(2.56e-5)
    assert [part.DATASET for part in pretraining.datasets] == [
        "conceptual_captions",
        "general_corpus",
    ]
    assert pretraining.datasets[1].SEQ_LEN == 64 and pretraining.datasets[0].MIN_SEQ_LEN == 0
    for name in ("base_e2e_16x16G_fp16", "large_e2e_16x16G_fp16"):
        assert load_config(CFGS / "pretrain" / f"{name}.yaml").effective_lr(16) == pytest.approx(
            2.56e-5
        )


def test_capital_letters_of_a_name_may_be_mixed_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = CFGS / "vqa" / "base_4x16G_fp32.yaml"
    assert find_config(CFGS / "vqa" / "base_4X16G_fp32.yaml") == wanted
    monkeypatch.chdir(tmp_path)
    assert find_config("cfgs/vqa/base_4X16G_fp32.yaml") == wanted
    with pytest.raises(ConfigError, match=r"no such config; configs in .*: base_4_layers.yaml, "):
        find_config("cfgs/vqa/bas.yaml")
    with pytest.raises(ConfigError, match="configs in .*: none"):
        find_config(tmp_path / "x.yaml")


def test_values_are_read_by_attribute_and_survive_copies() -> None:
    config = load_config(CFGS / "vqa" / "spottune.yaml")
    assert config.NETWORK.VLBERT.hidden_size == config.values["NETWORK"]["VLBERT"]["hidden_size"]
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config and other.TRAIN.LR == config.TRAIN.LR
    assert "TRAIN.LR" in config.given and "TRAIN.MOMENTUM" not in config.given
    with pytest.raises(AttributeError, match="no key 'hiddn_size' .* did you mean hidden_size"):
        _ = config.NETWORK.VLBERT.hiddn_size
    with pytest.raises(AttributeError, match="overrides"):
        config.TRAIN.LR = 1


def test_override_wins_and_is_checked_like_the_file() -> None:
    path = CFGS / "vqa" / "base_4x16G_fp32.yaml"
    assert load_config(path, {"TRAIN.END_EPOCH": 1}).TRAIN.END_EPOCH == 1
    with pytest.raises(ConfigError, match=r"\(override\): unknown key TRAIN.EPOCHS"):
        load_config(path, {"TRAIN.EPOCHS": 1})


def test_keys_that_this_code_adds_are_explained_and_no_default_is_lost() -> None:
    assert ADDED.keys() == ADDED_MEANING.keys()
    assert PRETRAIN_ADDED.keys() == PRETRAIN_ADDED_MEANING.keys()
    assert set(PRETRAIN_ADDED) <= set(all_keys(defaults(True))) - set(all_keys(defaults(False)))
    for pretraining in (False, True):
        assert set(ADDED) <= set(all_keys(defaults(pretraining)))
    known = defaults(False)
    known["TRAIN"]["LR"] = 7
    assert defaults(False)["TRAIN"]["LR"] == 0.1


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value))
    return path


MINIMAL = {"DATASET": {"DATASET": "vqa"}, "NETWORK": {"IMAGE_FEAT_PRECOMPUTED": True}}


def load(tmp_path: Path, tree: dict[str, Any] | str) -> Config:
    value = tree if isinstance(tree, str) else MINIMAL | tree
    return load_config(write(tmp_path / "my.yaml", value))


def test_config_of_few_keys_has_the_defaults_of_the_original(tmp_path: Path) -> None:
    config = load(tmp_path, {})
    assert (config.RNG_SEED, config.TRAIN.OPTIMIZER, config.TRAIN.LR) == (-1, "SGD", 0.1)
    assert pytest.approx(1 / 3) == config.TRAIN.WARMUP_FACTOR
    assert config.NETWORK.VLBERT.num_hidden_layers == 4 and config.NETWORK.CLASSIFIER_TYPE == "2fc"
    assert config.DATASET.BOXES == "36" and config.NETWORK.IMAGE_FROZEN_BACKBONE_STAGES == (1, 2)
    assert adaptive_settings(config).strategy.name == "standard"
    pretraining = load(tmp_path, {"MODULE": "ResNetVLBERTForPretraining"})
    assert pretraining.NETWORK.VLBERT.with_pooler and pretraining.NETWORK.WITH_REL_LOSS


def test_spellings_of_values_in_the_originals_are_read(tmp_path: Path) -> None:
    text = """
GPUS: 0
SCALES: [600, 1000]
NETWORK: {IMAGE_FEAT_PRECOMPUTED: true}
DATASET: {BOXES: 36}
TRAIN:
  LR: 1e-4
  LR_STEP: "14,18"
  CLIP_GRAD_NORM: 10
  FP16_LOSS_SCALE: dynamic
  LR_MULT: [[final_mlp, 10]]
  LOSS_LOGGERS: ["ans_loss,AnsLoss"]
VAL: {BATCH_IMAGES: [2, 3]}
"""
    config = load(tmp_path, text)
    assert (config.GPUS, config.TRAIN.LR, config.TRAIN.LR_STEP) == ("0", 1e-4, (14.0, 18.0))
    assert (config.TRAIN.CLIP_GRAD_NORM, config.TRAIN.FP16_LOSS_SCALE) == (10.0, "dynamic")
    assert config.TRAIN.LR_MULT == (("final_mlp", 10.0),) and config.DATASET.BOXES == "36"
    assert config.TRAIN.LOSS_LOGGERS == (("ans_loss", "AnsLoss"),)
    assert config.VAL.BATCH_IMAGES == (2, 3) and config.SCALES == (600, 1000)


WRONG: dict[str, dict[str, Any]] = {
    "unknown key FINETUNE_STATEGY; did you mean FINETUNE_STRATEGY?": {"FINETUNE_STATEGY": "x"},
    "unknown key TRAIN.LEARNING; valid in TRAIN": {"TRAIN": {"LEARNING": 1}},
    "unknown key NETWORK.hidden_size; there is NETWORK.VLBERT.hidden_size": {
        "NETWORK": {"hidden_size": 3}
    },
    "unknown key NETWORK.WITH_REL_LOSS; there is NETWORK.WITH_REL_LOSS (of pretraining)": {
        "NETWORK": {"WITH_REL_LOSS": True}
    },
    "unknown key POLICY.OUTPUT_SIZES; did you mean OUTPUT_SIZE?": {"POLICY": {"OUTPUT_SIZES": 1}},
    "unknown key lr; there is TRAIN.LR and ATTENTION.LR and POLICY.LR": {"lr": 1},
    "unknown key TRAIN.lr; did you mean LR?": {"TRAIN": {"lr": 1}},
    "key TRAIN.END_EPOCH: 'ten' (str): expected a whole number": {"TRAIN": {"END_EPOCH": "ten"}},
    "key TRAIN.END_EPOCH: 1.5 (float): expected a whole number": {"TRAIN": {"END_EPOCH": 1.5}},
    "key TRAIN.END_EPOCH: True (bool): expected a whole number": {"TRAIN": {"END_EPOCH": True}},
    "key TRAIN.LR: 'fast' (str): expected a number": {"TRAIN": {"LR": "fast"}},
    "key TRAIN.WARMUP: 1 (int): expected true or false": {"TRAIN": {"WARMUP": 1}},
    "key MODULE: 3 (int): expected a text": {"MODULE": 3},
    "key SCALES: 600: expected a list": {"SCALES": 600},
    "key SCALES: [600]: give the shorter and the longer side": {"SCALES": [600]},
    "key TRAIN.OPTIMIZER: 'Adagrad'; valid: SGD, Adam, AdamW": {"TRAIN": {"OPTIMIZER": "Adagrad"}},
    "key TRAIN.LR_MULT: 'x': expected [part of": {"TRAIN": {"LR_MULT": ["x"]}},
    "key TRAIN: 3: expected keys and values": {"TRAIN": 3},
    "key TRAIN.FLIP_PROB: 2.0: must lie between 0 and 1": {"TRAIN": {"FLIP_PROB": 2}},
    "key TRAIN.BATCH_IMAGES: 0: must be positive": {"TRAIN": {"BATCH_IMAGES": 0}},
    "key TRAIN.GRAD_ACCUMULATE_STEPS: 0: must be positive": {"TRAIN": {"GRAD_ACCUMULATE_STEPS": 0}},
    "key HOLDOUT: 1.0: must lie between": {"HOLDOUT": 1},
    "key DATASET.CACHE_MODE: true": {"DATASET": {"CACHE_MODE": True}},
    "key NETWORK.IMAGE_FINAL_DIM: 5: must be equal to NETWORK.VLBERT.visual_size, 512": {
        "NETWORK": {"IMAGE_FINAL_DIM": 5}
    },
    "give three numbers each": {"NETWORK": {"IMAGE_FEAT_PRECOMPUTED": False}},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_config_is_one_clear_error(tmp_path: Path, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, WRONG[message])
    assert message in str(error.value) and str(error.value).startswith(f"{tmp_path / 'my.yaml'}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "TRAIN: {LR: 1, LR: 2}",
            "my.yaml: line 1, column 16: not valid YAML: key 'LR' occurs twice",
        ),
        ("TRAIN:\n\tLR: 1", "my.yaml: line 2, column 1: not valid YAML"),
        ("- 1", "my.yaml: expected keys and values"),
        ("MODULE: !!python/object:os.system {}", "not valid YAML"),
        ("BASE: other.yaml", "other.yaml: no such config"),
        ("BASE: my.yaml", "key BASE: "),
    ],
)
def test_file_that_is_no_config_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert message in str(error.value)


WRONG_STRATEGIES: dict[str, dict[str, Any]] = {
    "key FINETUNE_STRATEGY: unknown strategy 'SpotTone'. Did you mean SpotTune?": {
        "FINETUNE_STRATEGY": "SpotTone"
    },
    "say how many layers are trained, e.g. last_4": {"FINETUNE_STRATEGY": "LastK"},
    "key USE_CONSTRAIN_K_LOSS: true: strategy standard decides nothing": {
        "USE_CONSTRAIN_K_LOSS": True
    },
    "key NETWORK.VLBERT.FROZEN_LAYERS: [12]: strategy specific_k needs layers of 0 to 3": {
        "FINETUNE_STRATEGY": "specific_k",
        "NETWORK": {"IMAGE_FEAT_PRECOMPUTED": True, "VLBERT": {"FROZEN_LAYERS": [12]}},
    },
}


@pytest.mark.parametrize("message", WRONG_STRATEGIES)
def test_wrong_strategy_is_one_clear_error(tmp_path: Path, message: str) -> None:
    config = load(tmp_path, WRONG_STRATEGIES[message])
    with pytest.raises(ConfigError) as error:
        adaptive_settings(config)
    assert message in str(error.value)


def test_number_of_policy_outputs_has_to_fit_where_it_is_given(tmp_path: Path) -> None:
    config = load(tmp_path, {"FINETUNE_STRATEGY": "SpotTune", "POLICY": {"OUTPUT_SIZE": 24}})
    check_output_size(config, 12)
    with pytest.raises(ConfigError, match="180 decisions with two numbers each: 360"):
        check_output_size(config, 180)


def test_shipped_configs_of_other_data_or_features_never_share_a_folder():
    """A run is found by OUTPUT_PATH, its name and TRAIN_IMAGE_SET, and names may be given."""
    kinds: dict[tuple[str, str], set[tuple[str, bool]]] = {}
    for path in sorted((HOME / "cfgs").glob("*vqa*/*.yaml")):
        config = load_config(path)
        folder = config.OUTPUT_PATH, config.DATASET.TRAIN_IMAGE_SET
        kinds.setdefault(folder, set()).add(
            (config.DATASET.DATASET, config.NETWORK.IMAGE_FEAT_PRECOMPUTED)
        )
    assert len(kinds) > 4 and all(len(found) == 1 for found in kinds.values()), kinds
