"""Putting a VQA network together as a config says: sizes, pretrained weights, strategy."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import TypedDict

from common.adapt.adapting import adaptive_part
from common.data.tokenizer import Tokenizer
from common.errors import CheckpointError, ConfigError, DataError, named
from common.features.origin import nothing_known
from common.modules.attention import AttentionOptions
from common.reading import checked
from common.runs.pruning import load_and_adapt
from common.runs.strategy_record import (
    KEY,
    StrategyRecord,
    check_finetuned,
    checked_meta,
    finetuned_meta,
    has_own_names,
)
from common.training.checkpoint import check_compatible, load_meta
from common.training.weights import load_into, resolve_checkpoint, strip_prefix
from vlbert.config import Config, locate
from vlbert.config_adaptive import AdaptiveSettings, check_output_size
from vlbert.loading import (
    Network,
    answer_pieces,
    classifier_rows,
    load_bert,
    load_partial,
    load_resnet,
    model_path,
    read_model,
)
from vlbert.sizes import EncoderConfig, NetworkConfig, SpecialTokens
from vlbert.vqa_dataset import Transform, VLBertInputs, longest_question
from vlbert.vqa_network import ResNetVLBERT, set_classifier_rows

Say = Callable[[str], None]
FROM_SCRATCH = "--set NETWORK.VLBERT.from_scratch=true starts it from random weights"


class PixelKeys(TypedDict):
    """What pixels are normalised with: three numbers each, of blue, green and red, in 0..255."""

    PIXEL_MEANS: list[float]
    PIXEL_STDS: list[float]


class ConfigKeys(TypedDict):
    """The keys of a config that a finetuned checkpoint remembers, see `outputs.lasting`."""

    NETWORK: PixelKeys


class PictureMeta(TypedDict):
    """Of the meta of a model that reads pictures: how their pixels were prepared."""

    keys: ConfigKeys


@dataclass
class Built:
    """An adapted network with what identifies it."""

    model: ResNetVLBERT
    record: StrategyRecord
    size: str
    meta: dict[str, Any]


def build_vqa(
    config: Config,
    settings: AdaptiveSettings,
    tokenizer: Tokenizer,
    answers: Sequence[str],
    features: dict[str, Any],
    transform: Transform,
    load: Path | None = None,
    say: Say = print,
    rule: str | None = None,
    any_detector: bool = False,
) -> Built:
    """Build, load and adapt a VQA network.

    Args:
        config: of VQA.
        settings: its strategy, see `adaptive_settings`.
        tokenizer: of the questions.
        answers: in the order of the classifier.
        features: of the region features, see `origin_of`.
        transform: of boxes and images, which the checkpoint remembers.
        load: a finetuned model to load whole; None starts from the config's pretrained weights.
        say: where to report to.
        rule: which layers stay, see `common.adapt.layerdrop.kept_layers`; None: all.
        any_detector: features may be of another detector than the loaded weights'.

    Raises:
        ConfigError, CheckpointError: what does not fit.
    """
    found = saved_meta(load)
    sizes = network_sizes(config, tokenizer, len(answers), features["width"])
    if found.keys() & {"exported", "pruned"}:  # it may have fewer layers than its config
        layers = found["config"]["encoder"]["num_hidden_layers"]
        sizes = replace(sizes, encoder=replace(sizes.encoder, num_hidden_layers=layers))
    given = any(key.startswith("POLICY.VLBERT.") for key in config.given)
    policy_encoder = policy_sizes(config, sizes) if given else None
    record = StrategyRecord(
        config.FINETUNE_STRATEGY,
        settings.policy,
        settings.options.policy_eval,
        settings.trainable_layers,
        settings.frozen_layers,
        {"policy_encoder": policy_encoder and asdict(policy_encoder)},
        _attention(config, settings, found),
    )
    meta = finetuned_meta(
        "vlbert",
        record,
        size_name(config),
        sizes.to_dict(),
        features,
        answers,
        tokenizer,
        transform=described(transform),
    )
    model = ResNetVLBERT(sizes, policy_encoder)

    if found and load is not None:
        notes = check_finetuned(
            found | {"config": told_by_no_shape(found["config"])},
            meta,
            load,
            any_detector=any_detector,
            transform=meta["transform"],
            **pixels_of(config, found),
            config=told_by_no_shape(meta["config"]),
        )
        for note in notes:
            say(note)
    elif load is not None:
        say(nothing_known(load, features))

    def load_weights() -> None:
        if load is None:
            check_start(config, features, any_detector, say)
            load_start(model, config, tokenizer, answers, say)
        else:
            load_into(model, finetuned_weights(load), what=str(load))

    def adapt_model() -> None:
        record.adapt(model, settings.initial_share, settings.options)

    # Files of strategies that decide nothing hold exactly the standard names.
    own_names = load is not None and has_own_names(meta)
    load_and_adapt(model, load_weights, adapt_model, own_names, rule, meta, say)
    part = adaptive_part(model)
    if part is not None and settings.policy == "published":
        check_output_size(config, len(part.decision_names))
    return Built(model, record, meta["size"], meta)


def _attention(
    config: Config, settings: AdaptiveSettings, found: Mapping[str, Any]
) -> AttentionOptions:
    """The config's, where it says something; else that of the checkpoint to load."""
    said = any(key.startswith("ATTENTION.") for key in config.given)
    return (
        settings.attention
        if said or KEY not in found
        else StrategyRecord.from_meta(found).attention
    )


def pixels_of(config: Config, found: Mapping[str, Any]) -> dict[str, Any]:
    """How a config that reads images normalises pixels, to compare with a checkpoint's `keys`;
    nothing where the checkpoint does not say it."""
    network = config.NETWORK
    if network.IMAGE_FEAT_PRECOMPUTED or "keys" not in found:
        return {}
    return {"keys": {"NETWORK": {key: list(network[key]) for key in PixelKeys.__annotations__}}}


def make_model(meta: Mapping[str, Any]) -> ResNetVLBERT:
    """The finetuned VQA model of a checkpoint, with random weights and not adapted."""
    sizes = NetworkConfig.from_dict(meta["config"])
    encoder = meta[KEY]["policy_encoder"]
    return ResNetVLBERT(sizes, None if encoder is None else EncoderConfig(**encoder))


def make_inputs(tokenizer: Tokenizer, meta: Mapping[str, Any]) -> VLBertInputs:
    """What turns a batch of questions into the model's inputs.

    Raises:
        CheckpointError: the model reads pictures, and the meta does not say how.
    """
    sizes = meta["config"]["encoder"]
    return VLBertInputs(
        tokenizer,
        saved_transform(meta),
        longest_question(sizes["max_position_embeddings"], sizes["position_padding_idx"]),
        reads_pictures(meta),
    )


def reads_pictures(meta: Mapping[str, Any]) -> bool:
    """Whether the model of a checkpoint has a CNN, and reads of the regions only their boxes."""
    return not meta["config"]["image"]["precomputed"]


def saved_transform(meta: Mapping[str, Any]) -> Transform:
    """How the images and boxes of a finetuned checkpoint were prepared, mirrored ones aside.

    Sizes are in the entry `transform`, what pixels are normalised with is among the `keys` of the
    config; colours are always blue, green, red (see `transform_image`).

    Raises:
        CheckpointError: the model reads pictures, and the meta does not say how.
    """
    saved = meta["transform"]
    found = Transform(scales=tuple(saved["scales"]), whole_image=saved["whole_image"])
    if not reads_pictures(meta):
        return found
    way_out = "test it with vqa/test.py, whose config says it, or finetune again"
    try:
        network = checked(meta, PictureMeta, "meta", way_out)["keys"]["NETWORK"]
    except DataError as error:
        raise CheckpointError(str(error)) from None
    means, deviations = network["PIXEL_MEANS"], network["PIXEL_STDS"]
    if not len(means) == len(deviations) == 3:
        raise CheckpointError(
            f"meta: PIXEL_MEANS {means}, PIXEL_STDS {deviations}: three numbers each; {way_out}"
        )
    return replace(found, means=means, deviations=deviations)


def network_sizes(config: Config, tokenizer: Tokenizer, answers: int, width: int) -> NetworkConfig:
    """Sizes of the network of a config.

    Raises:
        ConfigError: the vocabulary, the features or an option do not fit.
    """
    words = config.NETWORK.VLBERT.vocab_size
    if words != len(tokenizer):
        raise ConfigError(
            f"{config.path}: key NETWORK.VLBERT.vocab_size: {words}: "
            f"{tokenizer.vocabulary_file} has {len(tokenizer)} word pieces"
        )
    tokens = SpecialTokens(tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    with named(config.path):
        return NetworkConfig.from_upstream(config.NETWORK, answers, tokens, width)


def policy_sizes(config: Config, sizes: NetworkConfig) -> EncoderConfig:
    """Sizes of the published policy network; what POLICY.VLBERT leaves out is the backbone's.

    Raises:
        ConfigError: it does not read what the backbone reads.
    """
    given = {key.rpartition(".")[2] for key in config.given if key.startswith("POLICY.VLBERT.")}
    always = (
        "num_hidden_layers",
        "intermediate_size",
        "visual_scale_text_init",
        "visual_scale_object_init",
    )
    values = asdict(sizes.encoder) | {
        key: value for key, value in config.POLICY.VLBERT.items() if key in given
    }
    for key in always:
        if key not in given:
            values[key] = {"num_hidden_layers": 2, "intermediate_size": 512}.get(key, 1.0)
    values["vocab_size"] = sizes.encoder.vocab_size
    if "vocab_size" in given and config.POLICY.VLBERT.vocab_size != sizes.encoder.vocab_size:
        raise ConfigError(
            f"{config.path}: key POLICY.VLBERT.vocab_size: "
            f"{config.POLICY.VLBERT.vocab_size}: the policy reads the questions of "
            f"the model, whose vocabulary has {sizes.encoder.vocab_size} pieces"
        )
    with named(f"{config.path}: section POLICY"):
        return EncoderConfig.from_upstream(values)


def size_name(config: Config) -> str:
    """Of the model in tables: SIZE, else large or base."""
    return config.SIZE or ("large" if config.NETWORK.VLBERT.hidden_size > 768 else "base")


def described(transform: Transform) -> dict[str, Any]:
    """What a checkpoint remembers of how its boxes were prepared."""
    return {"scales": list(transform.scales), "whole_image": transform.whole_image}


def load_start(
    model: Network, config: Config, tokenizer: Tokenizer, answers: Sequence[str], say: Say
) -> None:
    """The pretrained weights of a config: BERT, then PARTIAL_PRETRAIN, the CNN, answer rows.

    The network is one of VQA or of pretraining (which has no answers). BERT's weights are read only
    where PARTIAL_PRETRAIN does not bring the whole encoder.

    Raises:
        ConfigError: there are none, and random ones were not asked for.
        CheckpointError: they do not fit.
    """
    network = config.NETWORK
    missing = [name for name in model.state_dict() if name.startswith("vlbert.")]
    brought: set[str] = set()
    if network.PARTIAL_PRETRAIN:
        path = locate(network.PARTIAL_PRETRAIN)
        plan = load_partial(model, path, network.PARTIAL_PRETRAIN_PREFIX_CHANGES, say)
        brought = set(plan.loaded)
        missing = [name for name in missing if name not in brought]
    if missing and network.VLBERT.from_scratch:
        say(
            f"{len(missing)} tensors of the encoder start from random weights "
            "(NETWORK.VLBERT.from_scratch)"
        )
    elif missing:
        load_bert_of(model, config, say)
        if network.PARTIAL_PRETRAIN:
            load_partial(model, path, network.PARTIAL_PRETRAIN_PREFIX_CHANGES, lambda line: None)
    if not network.IMAGE_FEAT_PRECOMPUTED:
        load_cnn(model, config, brought, say)
    if network.CLASSIFIER_PRETRAINED:
        rows = classifier_rows(
            model.vlbert.word_embeddings.weight.detach(), answer_pieces(answers, tokenizer)
        )
        assert isinstance(model, ResNetVLBERT)
        set_classifier_rows(model, rows)
        if last := brought & {"final_mlp.1.weight", "final_mlp.2.weight"}:
            say(
                f"{network.PARTIAL_PRETRAIN}: its {last.pop()} is not used: the rows of the "
                "answers start from the word embeddings (NETWORK.CLASSIFIER_PRETRAINED)"
            )


def check_start(config: Config, features: Mapping[str, Any], any_detector: bool, say: Say) -> None:
    """Compare the features that PARTIAL_PRETRAIN was trained with with those in use.

    From images only the boxes of either are read.

    Raises:
        CheckpointError: they are of another detector, and that is not allowed.
    """
    network = config.NETWORK
    if not network.PARTIAL_PRETRAIN or not network.IMAGE_FEAT_PRECOMPUTED:
        return
    path = model_path(locate(network.PARTIAL_PRETRAIN))
    meta = load_meta(path) if path.suffix == ".safetensors" else {}
    if "features" not in meta:
        say(nothing_known(path, features))
        return
    if not meta.get("config", {}).get("image", {}).get("precomputed", True):
        return
    for note in check_compatible(meta, {"features": features}, path, any_detector):
        say(note)


def load_bert_of(model: Network, config: Config, say: Say) -> None:
    """BERT's weights: BERT_PRETRAINED, else those in the folder BERT_MODEL_NAME.

    Raises:
        ConfigError: there are none.
        CheckpointError: they do not fit.
    """
    network = config.NETWORK
    source = (
        f"{network.BERT_PRETRAINED}-{network.BERT_PRETRAINED_EPOCH:04d}.model"
        if network.BERT_PRETRAINED
        else network.BERT_MODEL_NAME
    )
    try:
        load_bert(model, locate(source), say)
    except (ConfigError, CheckpointError) as error:
        keys = "NETWORK.BERT_PRETRAINED" if network.BERT_PRETRAINED else "NETWORK.BERT_MODEL_NAME"
        raise type(error)(f"{config.path}: key {keys}: {error}; {FROM_SCRATCH}") from None


def load_cnn(model: Network, config: Config, brought: set[str], say: Say) -> None:
    """Weights of the CNN: IMAGE_PRETRAINED, or what PARTIAL_PRETRAIN brought.

    Raises:
        ConfigError: there are none, and parts of the CNN are frozen.
        CheckpointError: they do not fit.
    """
    network = config.NETWORK
    images = model.image_feature_extractor
    cnn = {
        name
        for name in model.state_dict()
        if name.startswith("image_feature_extractor.") and ".obj_downsample." not in name
    }
    if network.IMAGE_PRETRAINED:
        path = locate(f"{network.IMAGE_PRETRAINED}-{network.IMAGE_PRETRAINED_EPOCH:04d}.model")
        load_resnet(images, path)
        say(f"{path}: CNN loaded")
    elif not cnn <= brought:
        if network.IMAGE_FROZEN_BACKBONE_STAGES or network.IMAGE_FROZEN_BN:
            raise ConfigError(
                f"{config.path}: key NETWORK.IMAGE_PRETRAINED: is empty, and PARTIAL_PRETRAIN "
                "brings no CNN: random weights would be frozen; give weights, or train all of it "
                "(IMAGE_FROZEN_BACKBONE_STAGES: [], IMAGE_FROZEN_BN: false)"
            )
        say("the CNN starts from random weights")


def saved_meta(path: Path | None) -> dict[str, Any]:
    """The meta of a checkpoint of ours; empty for other files, and for none.

    Raises:
        CheckpointError: a checkpoint of something else than VQA with VL-BERT.
    """
    found = load_meta(path) if path is not None and path.suffix == ".safetensors" else {}
    if found and (found.get("backbone"), found.get("task")) != ("vlbert", "vqa"):
        raise CheckpointError(
            f"{path} is not a finetuned VQA model of VL-BERT (it is of "
            f"{found.get('backbone')}, task {found.get('task')!r}); a "
            "pretraining model is given with --partial-pretrain"
        )
    if found and path is not None:
        checked_meta(found, path)
    return found


def finetuned_weights(path: Path) -> dict[str, Tensor]:
    """Every weight of a finetuned model, ours or the original's.

    Raises:
        CheckpointError: another kind of model.
    """
    weights = strip_prefix(read_model(path), "module.")
    if not any(key.startswith("final_mlp.") for key in weights):
        raise CheckpointError(
            f"{path} is not a finetuned VQA model (no final_mlp.*); a "
            "pretraining model is given with --partial-pretrain"
        )
    return weights


def told_by_no_shape(config: dict[str, Any]) -> dict[str, Any]:
    """What a network computes and the shapes of its weights do not say, of `to_dict`."""
    encoder, image = config["encoder"], config["image"]
    found = {
        key: encoder[key]
        for key in (
            "num_hidden_layers",
            "num_attention_heads",
            "hidden_act",
            "position_padding_idx",
        )
    }
    found |= {key: config[key] for key in ("classifier", "no_grounding")}
    found["precomputed"] = image["precomputed"]
    if not image["precomputed"]:
        found |= {key: image[key] for key in ("dilated", "stride_in_1x1")}
    return found


def checkpoint_path(name: Path) -> Path:
    """The file of a checkpoint of ours or of the original.

    A run's folder means its BEST, and so does PREFIX-best, the original's name of it; the epoch
    files PREFIX-0004.model of the original are ours with another ending.

    Raises:
        CheckpointError: there is none.
    """
    if name.is_dir():
        return resolve_checkpoint(name / "BEST")
    if name.suffix == ".model" and not name.exists():
        name = name.with_suffix("")
    best = name.parent / "BEST.safetensors"
    epochs = name.parent.glob(f"{glob.escape(name.name.removesuffix('-best'))}-[0-9]*.safetensors")
    if not name.exists() and name.name.endswith("-best") and best.exists() and any(epochs):
        return best
    return resolve_checkpoint(name)
