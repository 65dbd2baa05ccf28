"""Names and shapes of all parameters, at the published sizes, without memory for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from common.adapt.adapting import adapt
from common.adapt.strategies import STRATEGIES, plan_sites
from vlbert.pretraining_network import ResNetVLBERTForPretraining
from vlbert.sizes import NetworkConfig, PretrainingConfig, size_config
from vlbert.vqa_network import PublishedPolicy, ResNetVLBERT

Shapes = dict[str, tuple[int, ...]]
DEPTH, WIDTH, EXPANDED = (
    {"base": 12, "large": 24},
    {"base": 768, "large": 1024},
    {"base": 3072, "large": 4096},
)
WORDS, ANSWERS, CLASSES = 30522, 3129, 1601


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def encoder(size: str) -> Shapes:
    """Embeddings and layers of `vlbert`, and the two parameters that every network has beside."""
    h, wide = WIDTH[size], EXPANDED[size]
    shapes = linear("image_feature_extractor.obj_downsample.1", h, 4096)
    shapes["object_linguistic_embeddings.weight"] = (1, h)
    for name, rows in (("word", WORDS), ("end", 1), ("position", 512), ("token_type", 3)):
        ending = "embedding" if name == "end" else "embeddings"
        shapes[f"vlbert.{name}_{ending}.weight"] = (rows, h)
    for name in ("embedding_LayerNorm", "visual_ln_text", "visual_ln_object"):
        shapes |= norm(f"vlbert.{name}", h)
    for number in range(DEPTH[size]):
        layer = f"vlbert.encoder.layer.{number}"
        for name in ("query", "key", "value"):
            shapes |= linear(f"{layer}.attention.self.{name}", h, h)
        shapes |= linear(f"{layer}.attention.output.dense", h, h)
        shapes |= norm(f"{layer}.attention.output.LayerNorm", h)
        shapes |= linear(f"{layer}.intermediate.dense", wide, h)
        shapes |= linear(f"{layer}.output.dense", h, wide) | norm(f"{layer}.output.LayerNorm", h)
    return shapes


def pretraining(size: str) -> Shapes:
    h = WIDTH[size]
    words, regions = "vlbert.mlm_head.predictions", "vlbert.mvrc_head"
    return encoder(size) | {
        "object_mask_word_embedding.weight": (1, h),
        "aux_text_visual_embedding.weight": (1, h),
        f"{words}.bias": (WORDS,),
        f"{words}.decoder.weight": (WORDS, h),
        **linear(f"{words}.transform.dense", h, h),
        **norm(f"{words}.transform.LayerNorm", h),
        **linear(f"{regions}.transform.dense", h, h),
        **linear(f"{regions}.region_cls_pred", CLASSES, h),
    }


def batch_norm(name: str, size: int) -> Shapes:
    return norm(name, size) | {
        f"{name}.running_mean": (size,),
        f"{name}.running_var": (size,),
        f"{name}.num_batches_tracked": (),
    }


def resnet_stage(name: str, blocks: int, inputs: int, planes: int) -> Shapes:
    shapes: Shapes = {}
    for number in range(blocks):
        block = f"{name}.{number}"
        sizes = ((planes, inputs, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1))
        for place, size in enumerate(sizes, 1):
            shapes[f"{block}.conv{place}.weight"] = size
            shapes |= batch_norm(f"{block}.bn{place}", size[0])
        if number == 0:
            shapes[f"{block}.downsample.0.weight"] = (4 * planes, inputs, 1, 1)
            shapes |= batch_norm(f"{block}.downsample.1", 4 * planes)
        inputs = 4 * planes
    return shapes


def resnet101() -> Shapes:
    backbone, head = "image_feature_extractor.backbone", "image_feature_extractor"
    shapes = {f"{backbone}.conv1.weight": (64, 3, 7, 7), **batch_norm(f"{backbone}.bn1", 64)}
    for number, (blocks, inputs) in enumerate(((3, 64), (4, 256), (23, 512))):
        shapes |= resnet_stage(f"{backbone}.layer{number + 1}", blocks, inputs, 64 * 2**number)
    for name in ("roi_head_feature_extractor", "head.0"):
        shapes |= resnet_stage(f"{head}.{name}", 3, 1024, 512)
    return shapes


def shapes_of(model: nn.Module) -> Shapes:
    return {name: tuple(x.shape) for name, x in model.state_dict().items()}


def count(model: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def on_meta(build) -> nn.Module:
    with torch.device("meta"):
        return build()


@pytest.mark.parametrize(
    ("size", "keys", "parameters"), [("base", 218, 114_491_515), ("large", 410, 342_071_675)]
)
def test_the_precomputed_pretraining_model_has_the_released_names(size, keys, parameters):
    model = on_meta(lambda: ResNetVLBERTForPretraining(PretrainingConfig(*size_config(size))))
    expected = pretraining(size) | {"object_mask_visual_embedding.weight": (1, 2048)}
    assert shapes_of(model) == expected
    assert (len(expected), count(model)) == (keys, parameters)


@pytest.mark.parametrize(("size", "keys"), [("base", 901), ("large", 1093)])
def test_the_end_to_end_pretraining_model_has_the_released_names(size, keys):
    encoder_config, image = size_config(size)
    model = on_meta(
        lambda: ResNetVLBERTForPretraining(
            PretrainingConfig(encoder_config, replace(image, precomputed=False))
        )
    )
    assert shapes_of(model) == pretraining(size) | resnet101() and len(shapes_of(model)) == keys
    if size == "base":
        assert count(model) == 156_989_627 and count(model, trainable=True) == 156_661_883


def test_the_vqa_model_has_the_original_names():
    model = on_meta(lambda: ResNetVLBERT(NetworkConfig()))
    expected = (
        encoder("base")
        | linear("final_mlp.0.dense", 768, 768)
        | norm("final_mlp.0.LayerNorm", 768)
        | linear("final_mlp.2", ANSWERS, 768)
    )
    assert shapes_of(model) == expected
    assert len(expected) == 211
    assert count(model) == count(model, trainable=True) == 115_041_849


def test_adapting_adds_only_names_of_its_own():
    encoder_config, image = size_config("small")
    config = NetworkConfig(replace(encoder_config, vocab_size=100), image, num_answers=13)
    plain = ResNetVLBERT(config).state_dict().keys()
    model = adapt(ResNetVLBERT(config), "SpotTune", "published")
    added = model.state_dict().keys() - plain
    assert plain <= model.state_dict().keys()
    assert added and all(name.startswith("vlbert.encoder.adaptive.") for name in added)


@pytest.mark.parametrize(
    ("size", "strategy", "decisions"),
    [
        ("base", "SpotTune_Block", 12),
        ("base", "SpotTune_Res", 24),
        ("base", "SpotTune", 180),
        ("base", "BlockDrop", 12),
        ("base", "BlockReplace", 12),
        ("large", "SpotTune_Block", 24),
        ("large", "SpotTune_Res", 48),
        ("large", "SpotTune", 456),
    ],
)
def test_the_numbers_of_decisions_and_none_is_dead(size, strategy, decisions):
    encoder_config, image = size_config(size)
    layers = on_meta(lambda: ResNetVLBERT(NetworkConfig(encoder_config, image)))
    encoder = layers.vlbert.encoder
    sites = [
        site
        for of_layer in plan_sites(
            encoder.layers(), STRATEGIES[strategy], encoder.reads, encoder.reads_first
        )
        for site in of_layer
    ]
    assert sum(len(site.columns) for site in sites) == decisions
    assert all(site.live for site in sites)
    assert sites[0].layer == "layer.1" and sites[-1].layer == f"layer.{DEPTH[size]}"


@pytest.mark.parametrize(("decisions", "parameters"), [(12, 33_905_944), (180, 34_164_328)])
def test_the_published_policy_is_as_large_as_published(decisions, parameters):
    """33.91M with 24 outputs, 34.16M with 360, in the derived repository's measurements."""
    policy = on_meta(lambda: PublishedPolicy(NetworkConfig(), None, decisions, 0.5))
    assert count(policy) == parameters
