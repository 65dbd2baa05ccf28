"""Files in: released models, the 12-in-1 system's, BERT folders, answer rows, bad files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining, BertModel

from common.data.tokenizer import packaged_bert_folder, small_vocabulary
from common.errors import CheckpointError, ConfigError
from common.training.checkpoint import save_checkpoint
from tests.common.tiny_models import vilbert_config
from tests.vilbert.models import close, inputs_of, randomise
from vilbert.baseline import BaseBertForVLTasks
from vilbert.heads import BertForMultiModalPreTraining, VILBertForVLTasks, VILBertForVQA
from vilbert.loading import find_vocabulary, load_bert, load_finetuned, load_start, read_file
from vilbert.modeling import BertModel as TwoStreams

DECODER = "cls.predictions.decoder.weight"
WORDS = "bert.embeddings.word_embeddings.weight"
NEW_HEADS = ("vil_prediction.", "vil_logit.", "vision_logit.", "linguisic_logit.")
ANSWERS = ["no", "yes", "2", "red", "cat"]


def silent(text: str) -> None:
    """Takes the place of print."""


def start(model: nn.Module, path: Path | str, answers: list[str] = ANSWERS) -> list[str]:
    """Start a model from a file; returns what was said."""
    said: list[str] = []
    load_start(model, str(path), {}, answers, said.append)
    return said


def write(path: Path, weights: dict[str, Tensor], prefix: str = "") -> Path:
    """A file of the original: a bare state dict, perhaps of a wrapped model."""
    torch.save({prefix + name: x.clone() for name, x in weights.items()}, path)
    return path


def pretrained(seed: int = 5, **changes: object) -> dict[str, Tensor]:
    """What the released `pytorch_model_9.bin` holds."""
    model = randomise(BertForMultiModalPreTraining(vilbert_config(**changes)), seed=seed)
    return dict(model.state_dict())


def finetuned(seed: int = 6, **changes: object) -> dict[str, Tensor]:
    """What `train_tasks.py` of the original saved."""
    return dict(randomise(VILBertForVLTasks(vilbert_config(**changes)), seed=seed).state_dict())


def network(**changes: object) -> VILBertForVQA:
    torch.manual_seed(0)
    return VILBertForVQA(vilbert_config(**changes))


def same(model: nn.Module, weights: dict[str, Tensor], but: tuple[str, ...] = ()) -> set[str]:
    """Compare a model with weights; returns the names that were compared."""
    own = model.state_dict()
    names = {n for n in own if n in weights and not n.startswith(but or "-")}
    for name in names:
        assert torch.equal(own[name], weights[name]), name
    return names


@pytest.mark.parametrize("decoder", [True, False], ids=["decoder", "tied"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_released_file_starts_all_but_the_heads_of_tasks(prefix, decoder, tmp_path):
    weights, model = pretrained(), network()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    kept = {n: x for n, x in weights.items() if decoder or n != DECODER}
    said = start(model, write(tmp_path / "pytorch_model_9.bin", kept, prefix))
    own = model.state_dict()
    assert same(model, weights) == {n for n in own if not n.startswith(NEW_HEADS)}
    assert all(torch.equal(own[n], before[n]) for n in own if n.startswith(NEW_HEADS))
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert said == [
        f"{tmp_path / 'pytorch_model_9.bin'}: {len(kept)} tensors loaded, the classifier is new"
    ]


def test_half_precision_and_tensorflows_names_are_read(tmp_path):
    weights = {name: x.half() for name, x in pretrained().items()}
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): x
        for name, x in weights.items()
    }
    assert any(name.endswith("gamma") for name in old)
    path = write(tmp_path / "old.bin", old)
    assert {x.dtype for x in read_file(path).values()} == {torch.float32}
    model = network()
    start(model, path)
    same(model, {name: x.float() for name, x in weights.items()})


def test_a_finetuned_file_gives_its_encoder_and_the_heads_that_have_no_answers(tmp_path):
    """The answers of a .bin are not in it, so that its classifier cannot be taken over."""
    weights, model = finetuned(num_labels=9), network()
    before = {n: x.clone() for n, x in model.vil_prediction.state_dict().items()}
    start(model, write(tmp_path / "pytorch_model_19.bin", weights, "module."))
    compared = same(model, weights, but=("vil_prediction.",))
    assert {"vil_logit.weight", WORDS, "bert.v_pooler.dense.weight"} <= compared
    same(model.vil_prediction, before)


def twelve_in_one() -> dict[str, Tensor]:
    """A `multi_task_model.bin`: the same encoder, other heads, tokens that name the task."""
    weights = {n: x for n, x in finetuned().items() if not n.startswith("vil_prediction.")}
    for head in ("vil_prediction", "vil_prediction_gqa", "vil_binary_prediction"):
        for place, size in ((0, 32), (2, 32), (3, 7)):
            weights[f"{head}.logit_fc.{place}.weight"] = torch.randn(size, 16)
            weights[f"{head}.logit_fc.{place}.bias"] = torch.randn(size)
    weights["vil_tri_prediction.weight"] = torch.randn(3, 16)
    weights["bert.embeddings.task_embeddings.weight"] = torch.randn(20, 12)
    return weights


def test_the_encoder_of_a_12_in_1_file_is_taken_over(tmp_path):
    weights, model = twelve_in_one(), network()
    (said,) = start(model, write(tmp_path / "multi_task_model.bin", weights, "module."))
    compared = same(model, weights)
    assert compared == {n for n in model.state_dict() if not n.startswith("vil_prediction.")}
    assert "the classifier is new; not in this model: bert.embeddings.task_emb" in said
    assert "vil_binary_prediction, vil_pred" in said


def test_a_finetuned_12_in_1_file_is_refused_with_the_way_out(tmp_path):
    path = write(tmp_path / "multi_task_model.bin", twelve_in_one())
    with pytest.raises(CheckpointError, match="12-in-1 system, whose classifier.*--from_pretrai"):
        load_finetuned(network(), path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 24}, r"bert\.embeddings.*: \[40, 24\] in the file, \[40, 12\] in the mod"),
        ({"vocab_size": 41}, r"word_embeddings.weight: \[41, 12\] in the file, \[40, 12\] in"),
        ({"v_feature_size": 8}, r"image_embeddings.weight: \[8, 8\] in the file, \[8, 7\] in the"),
        (
            {"v_num_hidden_layers": 1, "v_biattention_id": (0, 0)},
            "v_layer.1.attention.self.query.weight: not in the file",
        ),
        # Connections would stand before other layers.
        ({"num_hidden_layers": 4}, "16 tensors do not fit.*layer.3.attention.*: not in the model"),
        (
            {"v_biattention_id": (0, 0, 1), "t_biattention_id": (0, 1, 2)},
            "c_layer.2.biattention.query1.weight: not in the model",
        ),
    ],
)
def test_a_file_of_other_sizes_is_one_error_with_the_way_out(changes, message, tmp_path):
    path = write(tmp_path / "other.bin", pretrained(**changes))
    with pytest.raises(CheckpointError) as caught:
        start(network(), path)
    text = str(caught.value)
    assert text.startswith(f"{path}: not a ViLBERT of these sizes: ") and "\n" not in text
    assert re.search(message, text) and "--config_file" in text


@pytest.mark.parametrize("what", ["two streams", "a BERT's file"])
def test_a_file_of_another_network_is_refused(what, tmp_path):
    weights = pretrained()
    model: nn.Module = BaseBertForVLTasks(vilbert_config())
    if what == "a BERT's file":
        model = network()
        weights = {n: x for n, x in weights.items() if n.startswith(("bert.embeddings.", "cls.p"))}
    with pytest.raises(CheckpointError, match="not a ViLBERT of these sizes.*of a BERT its folder"):
        start(model, write(tmp_path / "weights.bin", weights))


def test_a_file_without_a_name_of_the_model_is_refused(tmp_path):
    path = write(tmp_path / "other.bin", {"lxrt_encoder.model.bert.pooler.dense.bias": Tensor([1])})
    with pytest.raises(CheckpointError, match="no name in .*other.bin fits the VILBertForVQA"):
        start(network(), path)


def test_a_file_that_is_not_there_says_where_it_comes_from(tmp_path):
    with pytest.raises(CheckpointError, match=r"tried: .*absent.bin.*pytorch_model_9\.bin"):
        start(network(), tmp_path / "absent")


def ours(path: Path, answers: list[str], weights: dict[str, Tensor], **meta: object) -> Path:
    save_checkpoint(path, {"model": weights}, {"answers": answers, **meta})
    return path


def answer_weights(model: nn.Module) -> Tensor:
    """The last weight as it acts, (A, C)."""
    last = model.vil_prediction.main[3]
    return last.weight_g * last.weight_v / last.weight_v.norm()


@pytest.mark.parametrize("answers", [ANSWERS, ["cat", "2"], ["red"], [*ANSWERS[::-1]]])
def test_rows_of_answers_are_copied_by_their_texts(answers, tmp_path):
    known = ["blue", *ANSWERS, "dog"]
    weights = finetuned(num_labels=len(known))
    source, model = network(num_labels=len(known)), network(num_labels=len(answers))
    source.load_state_dict(weights)
    path = ours(tmp_path / "model.safetensors", known, dict(source.state_dict()))
    said = start(model, path, answers)
    places = [known.index(answer) for answer in answers]
    torch.testing.assert_close(answer_weights(model), answer_weights(source)[places])
    assert torch.equal(
        model.vil_prediction.main[3].bias, source.vil_prediction.main[3].bias[places]
    )
    same(model, weights, but=("vil_prediction.main.3.",))
    found, whole = (network.double().eval()(**inputs_of(3)) for network in (model, source))
    torch.testing.assert_close(found, whole[:, places], rtol=0, atol=1e-6)
    assert f"classifier with {len(answers)} answers" in said[0]


def test_a_file_that_lacks_an_answer_leaves_the_classifier_new(tmp_path):
    weights = finetuned(num_labels=2)
    path = ours(tmp_path / "model.safetensors", ["no", "yes"], weights)
    model = network(num_labels=3)
    before = {n: x.clone() for n, x in model.vil_prediction.state_dict().items()}
    said = start(model, path, ["no", "yes", "maybe"])
    same(model.vil_prediction, before)
    same(model, weights, but=("vil_prediction.",))
    assert "the classifier is new" in said[0]


def test_answers_of_a_file_without_a_classifier_are_left_alone(tmp_path):
    model = network()
    said = start(model, ours(tmp_path / "model.safetensors", ANSWERS, pretrained()))
    assert "the classifier is new" in said[0]


def test_features_and_vocabulary_of_a_file_are_compared_with_those_in_use(tmp_path):
    path = ours(
        tmp_path / "model.safetensors",
        ANSWERS,
        finetuned(),
        vocabulary={"count": 40, "sha256": "a"},
    )
    fits = {"vocabulary": {"count": 40, "sha256": "b"}, "features": {"width": 7}}
    with pytest.raises(CheckpointError, match="model.safetensors.*vocabulary"):
        load_start(network(), str(path), fits, ANSWERS, silent)
    fits["vocabulary"]["sha256"] = "a"
    load_start(network(), str(path), fits, ANSWERS, silent)


@pytest.mark.parametrize("decoder", [True, False], ids=["decoder", "tied"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_finetuned_file_of_the_original_loads_whole(prefix, decoder, tmp_path):
    weights, model = finetuned(), network()
    kept = {n: x for n, x in weights.items() if decoder or n != DECODER}
    load_finetuned(model, write(tmp_path / "pytorch_model_19.bin", kept, prefix))
    assert same(model, weights) == set(weights)


def test_the_originals_weights_load_whole(goldens, tmp_path):
    """Its own names, of which ours are written down nowhere else."""
    weights = load_file(goldens / "vilbert" / "weights.safetensors")
    sizes = {
        "vocab_size": 97,
        "hidden_size": 48,
        "num_attention_heads": 4,
        "intermediate_size": 72,
        "max_position_embeddings": 20,
        "v_feature_size": 24,
        "v_target_size": 13,
        "v_hidden_size": 32,
        "v_intermediate_size": 40,
        "bi_hidden_size": 32,
        "num_labels": 11,
    }
    model = network(**sizes)
    load_finetuned(model, write(tmp_path / "pytorch_model_19.bin", weights, "module."))
    assert same(model, weights) == set(weights)


def test_what_is_not_finetuned_is_refused_with_the_way_out(tmp_path):
    path = write(tmp_path / "pytorch_model_9.bin", pretrained())
    with pytest.raises(CheckpointError, match="no vil_prediction.*--from_pretrained of train_tas"):
        load_finetuned(network(), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_labels": 6}, r"vil_prediction.main.3.bias \[6\] instead of \[5\]"),
        ({"num_hidden_layers": 4}, "16 unexpected"),
    ],
)
def test_a_finetuned_file_of_other_sizes_is_refused(change, message, tmp_path):
    path = write(tmp_path / "pytorch_model_19.bin", finetuned(**change))
    with pytest.raises(CheckpointError, match=f"does not fit the VILBertForVQA(.|\n)*{message}"):
        load_finetuned(network(), path)


def test_a_decoder_that_differs_from_the_word_table_is_refused(tmp_path):
    weights = finetuned()
    weights[DECODER] = weights[DECODER] + 1
    with pytest.raises(CheckpointError, match="decoder.weight' have different values, but the mod"):
        load_finetuned(network(), write(tmp_path / "pytorch_model_19.bin", weights))


def test_a_tensor_that_is_missing_or_not_a_number_is_named(tmp_path):
    weights = finetuned()
    weights["vil_logit.bias"] = torch.tensor([float("nan")])
    with pytest.raises(CheckpointError, match=r"tensor 'vil_logit.bias' holds nan at \[0\]"):
        load_finetuned(network(), write(tmp_path / "a.bin", weights))
    del weights["vil_logit.bias"]
    with pytest.raises(CheckpointError, match="1 missing(.|\n)*vil_logit.bias"):
        load_finetuned(network(), write(tmp_path / "b.bin", weights))


LOADERS = [start, load_finetuned]


@pytest.mark.parametrize("load", LOADERS)
def test_damaged_files_are_one_error(load, tmp_path):
    path = write(tmp_path / "weights.bin", finetuned())
    whole = path.read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "truncated or damaged"),
        (b"", r"the file is empty \(0 bytes\)"),
        (b"<!DOCTYPE html><html>no such file</html>", "a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (b"PK\x03\x04" + b"\0" * 200, "truncated or damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load(network(), path)


@pytest.mark.parametrize("load", LOADERS)
def test_a_damaged_safetensors_file_is_one_error(load, tmp_path):
    path = ours(tmp_path / "model.safetensors", ANSWERS, finetuned())
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load(network(), path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load(network(), path)


@pytest.mark.parametrize("load", LOADERS)
def test_files_with_code_are_refused_and_nothing_runs(load, tmp_path):
    class Run:
        def __reduce__(self):
            return (tmp_path / "executed").touch, ()

    torch.save({**finetuned(), "run": Run()}, tmp_path / "evil.bin")
    with pytest.raises(CheckpointError, match="refused.*nothing was executed"):
        load(network(), tmp_path / "evil.bin")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor, not named weights"),
        ({}, "holds a dict without entries"),
        ({"bert.t_pooler.dense.bias": [1.0]}, "these entries are no tensors: bert.t_pooler"),
        (
            {"module.vil_logit.bias": torch.zeros(1), "vil_logit.bias": torch.zeros(1)},
            "two weights are called 'vil_logit.bias' without 'module.'",
        ),
    ],
)
def test_content_that_is_no_table_of_weights_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "weights.bin")
    with pytest.raises(CheckpointError, match=message):
        start(network(), tmp_path / "weights.bin")


SIZES = {
    "vocab_size": 40,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}


def bert(folder: Path, **changes: object) -> BertForPreTraining:
    model = randomise(BertForPreTraining(BertConfig(**SIZES | changes)))
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("old", [False, True])
def test_a_bert_folder_starts_the_text_half(old, tmp_path):
    source, model = bert(tmp_path, max_position_embeddings=24, num_hidden_layers=4), network()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    if old:  # as in 2018: a pickle with TensorFlow's names
        weights = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): x
            for name, x in source.state_dict().items()
        }
        (tmp_path / "model.safetensors").unlink()
        torch.save(weights, tmp_path / "pytorch_model.bin")
    (said,) = start(model, tmp_path)
    theirs = dict(source.state_dict())
    positions = "bert.embeddings.position_embeddings.weight"
    theirs[positions] = theirs[positions][:16]
    own = model.state_dict()
    text = [n for n in own if n.startswith(("bert.embeddings.", "bert.encoder.layer.", "cls.pre"))]
    assert len(text) == 5 + 3 * 16 + 6
    for name in text:
        assert torch.equal(own[name], theirs[name]), name
    assert all(torch.equal(own[n], before[n]) for n in own if n not in text)
    assert f": {len(text) - 1} tensors of the text half loaded; image layers, connections" in said


def test_the_text_stream_without_connections_is_that_bert(tmp_path):
    source = bert(tmp_path).double()
    model = TwoStreams(vilbert_config(with_coattention=False))
    whole = VILBertForVLTasks(vilbert_config(with_coattention=False))
    load_bert(whole, tmp_path, silent)
    model.load_state_dict(whole.bert.state_dict())
    inputs = inputs_of(4)
    found = model.double().eval()(**inputs).lang
    with torch.no_grad():
        expected = source.bert(
            *(inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
        ).last_hidden_state
    present = inputs["attention_mask"].bool()
    close(found[present], expected[present])


def test_a_bert_folder_starts_the_baseline(tmp_path):
    source, model = bert(tmp_path), BaseBertForVLTasks(vilbert_config())
    start(model, tmp_path)
    same(model, dict(source.state_dict()), but=("bert.pooler.", "cls.seq"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 41}, r"1 tensors, e.g. bert.embeddings.word.*: \(41, 12\) in the file"),
        ({"hidden_size": 24}, r"\(40, 24\) in the file, \(40, 12\) in the model"),
        ({"num_hidden_layers": 2}, "16 tensors, e.g. bert.encoder.layer.2.*: nothing in the file"),
        ({"max_position_embeddings": 10}, r"position_embeddings.weight: \(10, 12\) in the file"),
    ],
)
def test_a_bert_that_does_not_fit_is_refused(changes, message, tmp_path):
    bert(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=f"does not fit the model: .*{message}.*--config_fi"):
        start(network(), tmp_path)


def test_a_bert_without_weights_is_refused_with_the_way_out(tmp_path, monkeypatch):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="neither model.safetensors nor .*--from_pretrained FOLD"):
        start(network(), tmp_path)
    monkeypatch.setattr("vilbert.loading.HOME", tmp_path / "absent")
    with pytest.raises(ConfigError, match="no BERT weights in .*data/bert-large-uncased"):
        start(network(), "bert-large-uncased")


def test_a_real_bert_reads_english():
    """Of a MiniLM that a package carries; another library computes the same text stream."""
    folder = packaged_bert_folder()
    assert folder is not None
    sizes = {
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
        "with_coattention": False,
    }
    with torch.device("meta"):
        model: nn.Module = TwoStreams(vilbert_config(**sizes))
    model = model.to_empty(device="cpu").eval()
    holder = nn.Module()
    holder.bert = model
    load_bert(holder, folder, silent)
    theirs = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    ids = torch.tensor(
        [[101, 2054, 3609, 2003, 1996, 4937, 1029, 102], [101, 2129, 2116, 102] + 4 * [0]]
    )
    mask = (ids > 0).long()
    for parameter in (*model.v_embeddings.parameters(), *model.encoder.v_layer.parameters()):
        nn.init.zeros_(parameter)
    with torch.no_grad():
        found = model(ids, torch.zeros(2, 1, 7), torch.zeros(2, 1, 5), attention_mask=mask).lang
        expected = theirs(ids, mask).last_hidden_state
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=0, atol=2e-5)


def vocabulary(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(small_vocabulary(["a cat"])) + "\n")
    return folder


def test_a_vocabulary_beside_the_weights_comes_first(tmp_path):
    beside, other = vocabulary(tmp_path / "run"), vocabulary(tmp_path / "bert")
    assert find_vocabulary(str(beside / "model.safetensors"), str(other), silent) == beside
    assert find_vocabulary(str(tmp_path / "model.bin"), str(other), silent) == other
    assert find_vocabulary(None, str(other), silent) == other


def test_a_bert_that_is_started_from_brings_its_vocabulary(tmp_path):
    own, other = vocabulary(tmp_path / "mine"), vocabulary(tmp_path / "bert")
    assert find_vocabulary(str(own), str(other), silent) == own


def test_without_files_of_bert_the_same_vocabulary_comes_from_a_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vilbert.loading.HOME", tmp_path)
    said: list[str] = []
    found = find_vocabulary("save/pytorch_model_9.bin", "bert-base-uncased", said.append)
    assert found == packaged_bert_folder() and "using the same vocabulary from gt-all" in said[0]
    assert find_vocabulary(None, "bert-large-cased", silent) == tmp_path / "data/bert-large-cased"
    home = vocabulary(tmp_path / "data" / "bert-base-uncased")
    assert find_vocabulary("bert-base-uncased", "bert-base-uncased", silent) == home
