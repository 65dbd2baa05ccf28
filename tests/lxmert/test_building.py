"""What the load flags of the command line make of files, together with a strategy."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common.adapt.adapting import adaptive_part
from common.adapt.attention import set_attention
from common.errors import CheckpointError, ConfigError
from common.modules.attention import AttentionOptions
from common.tasks.vqa_command import Built
from lxrt.building import build_vqa
from lxrt.finetuning import PROGRAM
from lxrt.loading import load_bert, load_lxmert, load_lxmert_qa
from lxrt.modeling import PretrainingModel, VQAModel
from lxrt.sizes import size_config
from tests.lxmert.snapshots import (
    ANSWERS,
    KNOWN,
    all_answers,
    encoder_is,
    fresh,
    pretraining_weights,
)

FEATURES = {"width": 5, "detector": "none"}


def build(
    folder: Path, *flags: str, answers: list[str] = ANSWERS, said: list[str] | None = None
) -> Built:
    """`build_vqa` as a small model with a vocabulary of its own in `folder`."""
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\ncat\n?\n")
    options = PROGRAM.parse(["--size", "small", "--bert", str(folder), *flags])
    torch.manual_seed(7)
    return build_vqa(
        options.model,
        options.base.adaptive,
        "vqa",
        answers,
        FEATURES,
        folder,
        (said if said is not None else []).append,
    )


def small_weights(model: type[nn.Module], answers: int) -> dict[str, Tensor]:
    """Weights of a model as `build` makes it, with 8 words."""
    torch.manual_seed(8)
    found = model(
        size_config(
            "small",
            vocab_size=8,
            num_answers=answers,
            visual_feat_dim=5,
            obj_id_num=4,
            attr_id_num=3,
        )
    )
    for parameter in found.parameters():
        nn.init.normal_(parameter)
    return dict(found.state_dict())


def finetuned_file(
    folder: Path, name: str = "BEST.pth", replace: str = "model.module.bert."
) -> dict[str, Tensor]:
    """A finetuned model as upstream saves it, by default from `--multiGPU`."""
    weights = small_weights(VQAModel, len(ANSWERS))
    torch.save({n.replace("model.bert.", replace): x for n, x in weights.items()}, folder / name)
    return weights


@pytest.mark.parametrize("inner", ["model.bert.", "model.module.bert."])
@pytest.mark.parametrize("given", ["BEST", "BEST.pth"])
def test_load_takes_a_finetuned_file_of_upstream_from_one_or_several_gpus(tmp_path, inner, given):
    weights = finetuned_file(tmp_path, replace=inner)
    built = build(tmp_path, "--load", str(tmp_path / given))
    assert built.record.row.name == "standard" and built.size == "small"
    for name, value in built.model.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_load_of_a_pretraining_snapshot_points_to_loadlxmertqa(tmp_path):
    torch.save(small_weights(PretrainingModel, 7), tmp_path / "model_LXRT.pth")
    with pytest.raises(
        CheckpointError,
        match=r"model_LXRT.pth is not a finetuned VQA model "
        r"\(no logit_fc.\*\).*--loadLXMERTQA",
    ):
        build(tmp_path, "--load", str(tmp_path / "model_LXRT.pth"))


def test_load_of_an_upstream_file_with_other_answers_names_the_tensor_and_shapes(tmp_path):
    finetuned_file(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"(?s)BEST.pth does not fit the VQAModel.*logit_fc."
        r"3.weight \[6, 256\] instead of \[2, 256\]",
    ):
        build(tmp_path, "--load", str(tmp_path / "BEST.pth"), answers=["yes", "no"])


def test_load_of_a_missing_file_lists_what_was_tried(tmp_path):
    with pytest.raises(CheckpointError) as error:
        build(tmp_path, "--load", str(tmp_path / "BEST"))
    for ending in ("", ".safetensors", ".pth", ".bin"):
        assert f"{tmp_path / 'BEST'}{ending}" in str(error.value)


def small_snapshot(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    weights = small_weights(PretrainingModel, len(KNOWN))
    torch.save({f"module.{n}": x for n, x in weights.items()}, folder / "model_LXRT.pth")
    return all_answers(folder) / "model", weights


@pytest.mark.parametrize("route", ["--loadLXMERT", "--loadLXMERTQA", "--load", "--fromScratch"])
@pytest.mark.parametrize("strategy", ["SpotTune_Block", "SpotTune"])
def test_frozen_twins_are_the_loaded_weights_on_every_route(tmp_path, route, strategy):
    """In the original they stayed random unless the weights came by --loadLXMERTQA."""
    name, weights = small_snapshot(tmp_path)
    if route == "--load":
        weights = {
            n.removeprefix("lxrt_encoder.model."): x for n, x in finetuned_file(tmp_path).items()
        }
        name = tmp_path / "BEST"
    flags = [route] if route == "--fromScratch" else [route, str(name)]
    built = build(tmp_path, *flags, "--strategy", strategy)
    part, encoder = adaptive_part(built.model), built.model.bert.encoder
    if route != "--fromScratch":
        encoder_is(built.model, weights)
    for layer in encoder.layers():
        twin = part.twins[layer.name.replace(".", "_")]
        for key, value in layer.module.state_dict().items():
            assert torch.equal(twin.state_dict()[key], value), f"{layer.name}.{key}"
            assert twin.state_dict()[key].data_ptr() != value.data_ptr()
    assert not any(p.requires_grad for p in part.twins.parameters())


def test_with_both_lxmert_flags_the_qa_file_comes_last(tmp_path):
    (tmp_path / "first").mkdir()
    name, weights = small_snapshot(tmp_path)
    torch.save({n: x + 1 for n, x in weights.items()}, tmp_path / "first" / "model_LXRT.pth")
    said: list[str] = []
    built = build(
        tmp_path,
        "--loadLXMERTQA",
        str(name),
        "--loadLXMERT",
        str(tmp_path / "first" / "model"),
        said=said,
    )
    encoder_is(built.model, weights)
    assert any(line.startswith("encoder from") for line in said)
    assert said[-1] == f"encoder and answer head from {name}_LXRT.pth"


def test_without_any_weights_the_ways_to_start_are_listed(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"no BERT weights in .*: neither model.safetensors nor "
        r"pytorch_model.bin; .*--bert, or .*--fromScratch",
    ):
        build(tmp_path)
    assert build(tmp_path, "--fromScratch").model is not None


def test_a_missing_vocabulary_names_the_file_and_the_flag(tmp_path):
    options = PROGRAM.parse(["--size", "small", "--bert", str(tmp_path), "--fromScratch"])
    with pytest.raises(
        ConfigError,
        match=r"vocab.txt is missing: the vocabulary of "
        r"BERT-base-uncased.*--bert",
    ):
        build_vqa(options.model, options.base.adaptive, "vqa", ANSWERS, FEATURES, tmp_path)


class Bomb:
    """A pickle that runs a command when a careless reader opens it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: load_lxmert(fresh(), folder / "model"),
        lambda folder: load_lxmert_qa(fresh(), folder / "model", ANSWERS, all_answers(folder)),
        lambda folder: build(folder, "--load", str(folder / "model_LXRT.pth")),
        lambda folder: load_bert(fresh().bert, folder),
    ],
    ids=["--loadLXMERT", "--loadLXMERTQA", "--load", "--bert"],
)
def test_a_pickle_with_code_inside_is_refused_and_the_code_does_not_run(
    tmp_path: Path, load: Callable[[Path], object]
) -> None:
    mark = tmp_path / "ran"
    content = pretraining_weights() | {"bomb": Bomb(mark)}
    for name in ("model_LXRT.pth", "pytorch_model.bin"):
        torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError) as error:
        load(tmp_path)
    message = str(error.value)
    assert not mark.exists(), "the code in the pickle was run"
    assert ("model_LXRT.pth: refused" in message) or ("pytorch_model.bin: refused" in message)
    assert "posix.system" in message and "nothing was executed" in message
    assert "torch.save(model.state_dict(), 'weights.pth')" in message
    torch.load(tmp_path / "model_LXRT.pth", weights_only=False)
    assert mark.exists(), "the bomb is none: this test shows nothing"


ADAPTIVE_KINDS = {
    "span": AttentionOptions("softmax", "published", batch=3),
    "entmax": AttentionOptions("published"),
    "both": AttentionOptions("published", "published", batch=3),
    "layerdrop": AttentionOptions(),
}


@pytest.mark.parametrize("kind", ADAPTIVE_KINDS)
def test_load_takes_a_file_of_the_adaptive_lxmert(tmp_path, kind):
    """With its names for spans, α and layers, and what it saves beside them."""
    model = VQAModel(
        size_config("small", vocab_size=8, num_answers=len(ANSWERS), visual_feat_dim=5)
    )
    set_attention(model, ADAPTIVE_KINDS[kind])
    theirs = {}
    for name, x in model.state_dict().items():
        head, found, _ = name.partition(".weighting.")
        if kind == "layerdrop":
            name = re.sub(r"\.encoder\.(layer|[xr]_layers)\.", r".encoder.\1.module_list.", name)
        elif found and name.endswith("current_val"):
            name = f"{head}.adaptive_span.current_val"
            theirs[f"{head}.adaptive_span.mask_template_0"] = torch.linspace(-19, 0, 20)
        elif found:
            name = f"{head}.entmax_alpha.alpha_chooser"
            theirs[f"{head}.entmax_alpha.alpha"] = x
        theirs[name] = x
    torch.save(theirs, tmp_path / "adaptive_6910.pth")
    built = build(tmp_path, "--load", str(tmp_path / "adaptive_6910.pth"))
    assert built.record.attention == ADAPTIVE_KINDS[kind]
    assert built.model.state_dict().keys() == model.state_dict().keys()
    for name, value in built.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
