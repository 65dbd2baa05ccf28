"""Folders of `transformers` in and out: the same numbers there and here, and clear refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    LxmertForPreTraining,
    LxmertForQuestionAnswering,
    LxmertModel,
)
from transformers import LxmertConfig as HFConfig

from common.adapt.adapting import adapt
from common.data.tokenizer import Tokenizer
from common.errors import CheckpointError, ConfigError
from common.files import text_digest
from common.tasks.vqa_command import Built
from common.training.checkpoint import load_meta
from lxrt.building import build_vqa
from lxrt.finetuning import PROGRAM, main
from lxrt.hf_folder import is_hf_folder, read_hf_folder, save_hf_folder
from lxrt.modeling import PretrainingModel, VQAModel
from lxrt.sizes import LxmertConfig, nearest_size, size_config
from tests.lxmert.runs import score_of_predictions, strict_json
from tests.lxmert.snapshots import encoder_is

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "cat", "?", "is", "it", "a", "##t"]
VOCABULARY = "".join(f"{word}\n" for word in WORDS)
ANSWERS = ["yes", "no", "a man", "two"]
FEATURES = {"width": 5, "detector": "one"}
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 12,
    "num_attention_heads": 3,
    "intermediate_size": 16,
    "l_layers": 2,
    "x_layers": 1,
    "r_layers": 3,
    "visual_feat_dim": 5,
    "max_position_embeddings": 22,
}
KINDS = {"base": LxmertModel, "qa": LxmertForQuestionAnswering, "pretraining": LxmertForPreTraining}


def names(answers: list[str]) -> dict[str, Any]:
    """Answers as entries of a configuration of `transformers`."""
    return {
        "num_qa_labels": len(answers),
        "id2label": dict(enumerate(answers)),
        "label2id": {answer: number for number, answer in enumerate(answers)},
    }


def randomise(model: nn.Module, std: float = 0.5) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std, generator=generator)
    return model.eval()


def their_folder(
    folder: Path, kind: str = "qa", vocabulary: str | None = VOCABULARY, **changes: Any
) -> nn.Module:
    """A model of `transformers` in a folder as its `save_pretrained` writes it."""
    config = HFConfig(
        **(SIZES | names(ANSWERS) | {"num_object_labels": 4, "num_attr_labels": 3} | changes)
    )
    model = randomise(KINDS[kind](config))
    model.save_pretrained(folder)
    if vocabulary is not None:
        (folder / "vocab.txt").write_text(vocabulary)
    return model


def build(
    *flags: str,
    answers: list[str] = ANSWERS,
    features: dict[str, Any] = FEATURES,
    data: Path = Path("no data"),
    said: list[str] | None = None,
) -> Built:
    options = PROGRAM.parse(flags)
    return build_vqa(
        options.model,
        options.base.adaptive,
        "vqa",
        answers,
        features,
        data,
        (said if said is not None else []).append,
    )


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Two questions of different lengths about images with different numbers of regions."""
    generator = torch.Generator().manual_seed(2)
    return {
        "input_ids": torch.tensor([[2, 5, 6, 7, 3], [2, 6, 3, 0, 0]]),
        "input_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "features": torch.randn(2, 4, 5, generator=generator, dtype=dtype),
        "boxes": torch.rand(2, 4, 4, generator=generator, dtype=dtype),
        "region_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }


def theirs(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {
        "input_ids": "input_ids",
        "input_mask": "attention_mask",
        "features": "visual_feats",
        "boxes": "visual_pos",
        "region_mask": "visual_attention_mask",
    }
    return {renamed[name]: x for name, x in ours.items()}


def same_encoder(ours: nn.Module, hf: nn.Module, dtype: torch.dtype, tolerance: float) -> None:
    ours.eval().encoder.set_reads(("lang", "vision"))
    with torch.no_grad():
        found, expected = ours(**inputs(dtype)), hf(**theirs(inputs(dtype)))
    for name in ("lang", "vision", "pooled"):
        other = getattr(
            expected,
            {"lang": "language_output", "vision": "vision_output", "pooled": "pooled_output"}[name],
        )
        torch.testing.assert_close(getattr(found, name), other, rtol=0, atol=tolerance)
        assert other.std() > 0.1


def our_model(kind: type[nn.Module] = VQAModel, **changes: Any) -> nn.Module:
    return randomise(
        kind(
            LxmertConfig(
                **(
                    SIZES
                    | {"num_answers": len(ANSWERS), "obj_id_num": 4, "attr_id_num": 3}
                    | changes
                )
            )
        )
    )


@pytest.mark.parametrize("flag", ["--loadLXMERT", "--loadLXMERTQA", "--load"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_transformers_gives_its_outputs_or_says_which_flag_takes_it(
    tmp_path, kind, flag
):
    hf = their_folder(tmp_path, kind)
    takes = {
        "base": ["--loadLXMERT"],
        "qa": ["--loadLXMERT", "--loadLXMERTQA", "--load"],
        "pretraining": ["--loadLXMERT", "--loadLXMERTQA"],
    }[kind]
    if flag not in takes:
        with pytest.raises(CheckpointError, match=r"(?s)--loadLXMERT"):
            build(flag, str(tmp_path))
        return
    built = build(flag, str(tmp_path))
    same_encoder(built.model.bert, hf if kind == "base" else hf.lxmert, torch.float32, 1e-5)
    if flag != "--loadLXMERT":
        head = hf.answer_head.logit_fc.state_dict()
        found = built.model.logit_fc.state_dict()
        assert head.keys() == found.keys()
        assert all(torch.equal(found[name], x) for name, x in head.items())
    if flag == "--load":
        built.model.bert.encoder.set_reads(("lang",))
        with torch.no_grad():
            expected = hf(**theirs(inputs())).question_answering_score
            torch.testing.assert_close(built.model.eval()(**inputs()), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["bin", "sharded", "half"])
def test_weights_are_read_from_a_bin_file_from_shards_and_in_half_precision(tmp_path, form):
    hf = their_folder(tmp_path)
    weights = {name: x.clone() for name, x in hf.state_dict().items()}
    (tmp_path / "model.safetensors").unlink()
    if form == "bin":
        torch.save(weights, tmp_path / "pytorch_model.bin")
    elif form == "half":
        weights = {name: x.half() for name, x in weights.items()}
        save_file(weights, tmp_path / "model.safetensors")
    else:
        hf.save_pretrained(tmp_path, max_shard_size="10KB")
        assert len(list(tmp_path.glob("model-0*.safetensors"))) > 1
    state = build("--load", str(tmp_path)).model.state_dict()
    assert len(state) == len(weights)
    expected = {
        name.replace("lxmert.", "lxrt_encoder.model.bert.").removeprefix("answer_head."): x.float()
        for name, x in weights.items()
    }
    assert all(torch.equal(state[name], x) for name, x in expected.items())


def test_a_folder_brings_its_own_sizes_and_dropout(tmp_path):
    their_folder(tmp_path, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2)
    built = build("--load", str(tmp_path))
    wanted = SIZES | {
        "num_answers": 4,
        "hidden_dropout_prob": 0.3,
        "attention_probs_dropout_prob": 0.2,
    }
    assert wanted.items() <= built.model.config.to_dict().items()
    assert built.meta["config"] == built.model.config.to_dict() and built.size == "small"
    assert build("--load", str(tmp_path), "--dropout", "0").model.config.hidden_dropout_prob == 0
    shorter = build("--loadLXMERTQA", str(tmp_path), "--rlayers", "1").model
    assert len(shorter.bert.encoder.r_layers) == 1 and len(shorter.bert.encoder.layer) == 2
    encoder_is(
        shorter,
        {
            f"bert.{name.removeprefix('lxmert.')}": x
            for name, x in LxmertForQuestionAnswering.from_pretrained(tmp_path).state_dict().items()
        },
    )
    with pytest.raises(ConfigError, match="--size base has width 768, the model in .* 12: leave"):
        build("--load", str(tmp_path), "--size", "base")


@pytest.mark.parametrize(
    ("width", "size"),
    [(12, "small"), (128, "small"), (384, "small"), (768, "base"), (1024, "base")],
)
def test_the_recipe_is_that_of_the_named_size_next_below(width, size):
    assert nearest_size(LxmertConfig(hidden_size=width)) == size


def test_answers_are_found_by_their_names(tmp_path):
    """In another order, under the form of pretraining, exactly, or not at all."""
    known = ["2", "no", "yes", "a man", "man", "grape"]
    hf = their_folder(tmp_path, "pretraining", **names(known))
    said: list[str] = []
    head = build(
        "--loadLXMERTQA", str(tmp_path), answers=["yes", "two", "the man", "a man", "?"], said=said
    ).model.logit_fc[3]
    source = hf.answer_head.logit_fc[3]
    for place, row in enumerate([2, 0, 4, 3]):
        assert torch.equal(head.weight[place], source.weight[row])
        assert torch.equal(head.bias[place], source.bias[row])
    assert not head.weight[4].any() and not head.bias[4].any()
    assert any("4 answers from pretraining, 1 set to zero" in line for line in said)


def test_a_head_without_names_needs_upstreams_list_or_is_taken_in_the_order_of_the_data(tmp_path):
    their_folder(tmp_path, id2label=None, label2id=None)
    assert read_hf_folder(tmp_path).answers is None
    said: list[str] = []
    build("--load", str(tmp_path), said=said)
    assert any("does not name its 4 answers" in line for line in said)
    (tmp_path / "lxmert").mkdir()
    rows = [{"ans": answer} for answer in ("two", "man", "2", "no")]
    (tmp_path / "lxmert" / "all_ans.json").write_text(json.dumps(rows))
    built = build("--loadLXMERTQA", str(tmp_path), data=tmp_path)
    bias = LxmertForQuestionAnswering.from_pretrained(tmp_path).answer_head.logit_fc[3].bias
    assert built.model.logit_fc[3].bias.tolist() == [0, bias[3], bias[1], bias[0]]


@pytest.mark.parametrize("flag", ["--loadLXMERT", "--load"])
def test_features_and_vocabulary_that_do_not_fit_are_refused(tmp_path, flag):
    folder = tmp_path / "model"
    their_folder(folder)
    with pytest.raises(CheckpointError, match="features.width is 5 in the file, this run has 9"):
        build(flag, str(folder), features={"width": 9, "detector": "one"})
    (folder / "vocab.txt").write_text(VOCABULARY + "blue\n")
    with pytest.raises(CheckpointError, match="vocabulary.count is 12 in the file, this run has"):
        build(flag, str(folder))
    (folder / "vocab.txt").rename(tmp_path / "vocab.txt")
    with pytest.raises(
        CheckpointError,
        match="knows 12 word pieces, the vocabulary in use has 13.*put the vocab.txt",
    ):
        build(flag, str(folder), "--bert", str(tmp_path))


def test_a_finetuned_head_for_other_answers_is_refused(tmp_path):
    their_folder(tmp_path)
    with pytest.raises(CheckpointError, match="head has 4 answers .*, the data set 3; --loadLX"):
        build("--load", str(tmp_path), answers=ANSWERS[:3])
    with pytest.raises(CheckpointError, match="answer 1 is 'no' .*, in the data set it is 'a man'"):
        build("--load", str(tmp_path), answers=["yes", "a man", "no", "two"])


def test_what_is_recorded_of_detector_and_vocabulary_is_compared(tmp_path):
    record = {"features": FEATURES, "vocabulary": {"count": 12, "sha256": text_digest(VOCABULARY)}}
    save_hf_folder(our_model(), tmp_path, VOCABULARY, ANSWERS, record)
    assert read_hf_folder(tmp_path).record == record
    build("--load", str(tmp_path))
    with pytest.raises(CheckpointError, match="features.detector is 'one' in the file, this run"):
        build("--loadLXMERTQA", str(tmp_path), features={"width": 5, "detector": "two"})
    other = VOCABULARY.replace("cat", "dog")
    for name in ("vocab.txt", "tokenizer.json"):
        (tmp_path / name).unlink()
    (tmp_path / "vocab.txt").write_text(other)
    with pytest.raises(CheckpointError, match="vocabulary.sha256 is"):
        build("--load", str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert', only 'lxmert' is supported"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', only 'gelu' is supported"),
        ({"hidden_size": "12"}, "hidden_size is '12', not a number"),
        ({"id2label": {"0": "yes", "1": "no"}}, "id2label names 2 answers, the answer head has 4"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused(tmp_path, change, message):
    their_folder(tmp_path)
    values = strict_json(tmp_path / "config.json") | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        build("--load", str(tmp_path))


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    folder = tmp_path / "model"
    their_folder(folder)
    assert is_hf_folder(folder) and not is_hf_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights beside config.json"):
        build("--load", str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json: not valid JSON"):
        build("--load", str(folder))
    with pytest.raises(CheckpointError, match="a folder without a config.json"):
        build("--load", str(tmp_path))


@pytest.mark.parametrize("source", ["vocab.txt", "tokenizer.json"])
def test_the_vocabulary_is_read_from_either_file_that_transformers_knows(tmp_path, source):
    their_folder(tmp_path)
    if source == "tokenizer.json":  # which is all that transformers 5 saves
        BertTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
        (tmp_path / "vocab.txt").unlink()
    built = build("--load", str(tmp_path))
    assert built.tokenizer.vocabulary_file == tmp_path / source
    assert built.tokenizer.text() == VOCABULARY
    ids, mask = built.tokenizer.encode(["Is it a RED cat?", "catt"])
    assert ids.tolist() == [[2, 8, 9, 10, 5, 6, 7, 3], [2, 6, 11, 3, 0, 0, 0, 0]]
    assert mask.sum(1).tolist() == [8, 4]


def test_a_cased_tokenizer_is_refused(tmp_path):
    letters = "".join(f"{c}\n" for c in "abcABC")
    (tmp_path / "vocab.txt").write_text(VOCABULARY.replace("a\n", "", 1) + letters)
    Tokenizer(tmp_path)
    tokenizer = BertTokenizer.from_pretrained(tmp_path, do_lower_case=False)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="tells capital letters from small ones"):
        Tokenizer(tmp_path)


def test_our_model_in_transformers_gives_the_same_numbers_in_float64(tmp_path):
    ours, folder = our_model().double(), tmp_path / "model"
    save_hf_folder(ours, folder, VOCABULARY, ANSWERS)
    hf = LxmertForQuestionAnswering.from_pretrained(folder).eval()
    assert hf.dtype == torch.float64
    with torch.no_grad():
        expected = ours(**inputs(torch.float64))
        found = hf(**theirs(inputs(torch.float64))).question_answering_score
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert expected.std() > 0.1
    same_encoder(ours.bert, hf.lxmert, torch.float64, 1e-12)
    assert [hf.config.id2label[number] for number in range(4)] == ANSWERS
    modes = {file.stat().st_mode & 0o444 for file in folder.iterdir()}
    assert modes == {folder.stat().st_mode & 0o444}, "not readable by those who see the folder"


def test_our_pretraining_model_in_transformers_gives_the_same_heads(tmp_path):
    ours = our_model(PretrainingModel).double()
    save_hf_folder(ours, tmp_path, VOCABULARY, ANSWERS)
    hf = LxmertForPreTraining.from_pretrained(tmp_path).eval()
    assert hf.cls.predictions.decoder.weight is hf.lxmert.embeddings.word_embeddings.weight
    regions: list[dict[str, Tensor]] = []
    hf.obj_predict_head.register_forward_hook(lambda module, args, out: regions.append(out))
    visual = {
        name: (torch.zeros(2, 4, *shape, dtype=dtype), torch.ones(2, 4))
        for name, shape, dtype in (
            ("obj", (), torch.int64),
            ("attr", (), torch.int64),
            ("feat", (5,), torch.float64),
        )
    }
    with torch.no_grad():
        expected = ours(**inputs(torch.float64))
        found = hf(**theirs(inputs(torch.float64)), obj_labels=visual)
    heads = {
        "words": found.prediction_logits,
        "matched": found.cross_relationship_score,
        "answers": found.question_answering_score,
        **regions[0],
    }
    assert expected.keys() == heads.keys()
    for name, other in heads.items():
        torch.testing.assert_close(
            expected[name],
            other.view_as(expected[name]),
            rtol=0,
            atol=1e-11,
            msg=lambda text, n=name: f"{n}: {text}",
        )


@pytest.mark.parametrize(("losses", "qa"), [(("obj", "feat"), True), ((), True), ((), False)])
def test_a_pretraining_model_without_some_heads_goes_out_and_in(tmp_path, losses, qa):
    ours = PretrainingModel(our_model(PretrainingModel).config, losses, qa)
    save_hf_folder(ours, tmp_path, VOCABULARY, ANSWERS)
    hf = LxmertForPreTraining.from_pretrained(tmp_path)
    assert hasattr(hf, "obj_predict_head") == bool(losses) and hasattr(hf, "answer_head") == qa
    assert not losses or set(hf.obj_predict_head.decoder_dict) == set(losses)
    weights = read_hf_folder(tmp_path).weights()
    assert all(
        torch.equal(weights[name], x)
        for name, x in ours.state_dict().items()
        if name != "cls.predictions.decoder.weight"
    )


@pytest.mark.parametrize("kind", [VQAModel, PretrainingModel])
def test_weights_are_bit_equal_after_the_round_trip_through_transformers(tmp_path, kind):
    ours = our_model(kind)
    save_hf_folder(ours, tmp_path / "ours", VOCABULARY, ANSWERS, {"features": FEATURES})
    theirs_kind = KINDS["qa" if kind is VQAModel else "pretraining"]
    theirs_kind.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    folder = read_hf_folder(tmp_path / "theirs")
    assert folder.config == ours.config and folder.answers == tuple(ANSWERS)
    assert folder.record == {"features": FEATURES}
    found = folder.finetuned_weights() if kind is VQAModel else folder.weights()
    expected = ours.state_dict()
    tied = expected.keys() - found.keys()
    assert tied == (set() if kind is VQAModel else {"cls.predictions.decoder.weight"})
    assert all(torch.equal(expected[name], x) for name, x in found.items())


def test_the_saved_folder_has_a_tokenizer_that_gives_our_ids(tmp_path):
    save_hf_folder(our_model(), tmp_path, VOCABULARY, ANSWERS)
    sentences = ["Is it a red cat?", "catt", "it " * 40, "a dog"]
    ids, mask = Tokenizer(tmp_path).encode(sentences)
    found = AutoTokenizer.from_pretrained(tmp_path)(
        sentences, truncation=True, padding=True, return_tensors="pt"
    )
    assert torch.equal(found["input_ids"], ids) and torch.equal(found["attention_mask"], mask)
    assert ids.shape[1] == 20 and (tmp_path / "vocab.txt").read_text() == VOCABULARY


def test_what_transformers_cannot_hold_is_refused(tmp_path):
    model = adapt(our_model(), "SpotTune_Block")
    with pytest.raises(ConfigError, match="SpotTune_Block model has two branches.*common.export"):
        save_hf_folder(model, tmp_path, VOCABULARY)
    with pytest.raises(ConfigError, match="whose vision stream has no layer at all"):
        save_hf_folder(our_model(x_layers=0, r_layers=0), tmp_path, VOCABULARY)
    with pytest.raises(ConfigError, match="a Linear is no model of transformers"):
        save_hf_folder(nn.Linear(2, 2), tmp_path, VOCABULARY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("strategy", ["standard", "SpotTune_Block"])
def test_a_run_that_starts_from_a_folder_trains_resumes_in_size_and_is_tested(
    flags, pretrained, tmp_path, answers, strategy
):
    """The folder's width is neither that of small nor that of base; BEST remembers it."""
    folder, out = tmp_path / "model", tmp_path / "run"
    vocabulary = (pretrained.parent / "vocab.txt").read_text()
    config = size_config(
        "small",
        vocab_size=len(vocabulary.splitlines()),
        num_attention_heads=2,
        num_answers=len(answers),
        hidden_size=24,
        intermediate_size=32,
        r_layers=1,
    )
    torch.manual_seed(0)
    save_hf_folder(PretrainingModel(config), folder, vocabulary, answers)
    flags = [flag for flag in flags if flag not in ("--size", "small")]
    flags[flags.index("--loadLXMERTQA") + 1] = str(folder)
    assert main([*flags, "--strategy", strategy, "--output", str(out)]) == 0
    assert load_meta(out / "BEST.safetensors")["config"]["hidden_size"] == 24
    assert strict_json(out / "result.json")["size"] == "small"
    shutil.rmtree(folder)
    assert (
        main(
            [
                *flags[:4],
                "--gpus",
                "cpu",
                "--quiet",
                "--test",
                "minival",
                "--load",
                str(out / "BEST"),
                "--output",
                str(out),
            ]
        )
        == 0
    )
    found = score_of_predictions(out / "minival_predict.json", Path(flags[3]))
    assert found["overall"] == strict_json(out / "result.json")["accuracy"]["val"]["overall"]
