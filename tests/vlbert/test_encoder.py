"""The encoder: packing, positions, what is read, activations, bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from common.errors import ConfigError, DataError
from tests.common.tiny_models import vlbert_config, vlbert_inputs
from tests.vlbert.models import randomise
from vlbert.modeling import VisualLinguisticBert
from vlbert.packing import pack
from vlbert.sizes import EncoderConfig, ImageConfig, NetworkConfig
from vlbert.vqa_network import ResNetVLBERT

TEXT = torch.tensor([[1, 0, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0]]).bool()
OBJECTS = torch.tensor([[0, 1], [1, 1], [0, 0]]).bool()


def one_by_one(text, objects, end):
    """The packed rows of every sample, found with loops."""
    samples = [[*text[b][TEXT[b]], *objects[b][OBJECTS[b]], end] for b in range(len(text))]
    longest = max(map(len, samples))
    return torch.stack(
        [torch.stack(rows + [torch.zeros_like(end)] * (longest - len(rows))) for rows in samples]
    )


def test_tokens_objects_and_end_are_packed_without_gaps_in_their_order():
    text, objects, end = torch.randn(3, 4, 5), torch.randn(3, 2, 5), torch.randn(5)
    packing = pack(TEXT, OBJECTS)
    assert torch.equal(packing.take(text, objects, end), one_by_one(text, objects, end))
    assert packing.mask.sum(1).tolist() == [5, 4, 3]
    assert packing.positions(-1).tolist() == [[0, 1, 2, 3, 4], [0, 1, 1, 2, 4], [0, 1, 3, 3, 4]]
    assert torch.equal(packing.positions(1), packing.positions(-1) + 2)
    types = packing.types(torch.tensor([[0, 9, 1, 1]] * 3))
    assert types.tolist() == [[0, 1, 1, 2, 2], [0, 2, 2, 2, 0], [9, 1, 2, 0, 0]]


def test_objects_return_to_their_slots():
    packing = pack(TEXT, OBJECTS)
    objects = torch.randn(3, 2, 5)
    packed = packing.take(torch.randn(3, 4, 5), objects, torch.randn(5))
    assert torch.equal(packing.split_objects(packed), objects * OBJECTS[..., None])


@pytest.fixture
def network() -> ResNetVLBERT:
    return randomise(ResNetVLBERT(vlbert_config())).double().eval()


def test_the_answer_position_alone_gives_the_logits_of_all_positions(network):
    inputs = vlbert_inputs(5)
    narrowed = network.run(**inputs)
    assert narrowed.encoded.hidden.shape[1] == 1
    network.vlbert.encoder.set_reads(("hidden",))
    whole = network.run(**inputs)
    answer = whole.text.answer
    assert len(answer.unique()) > 1, "every sample has the same answer position"
    torch.testing.assert_close(narrowed.logits, whole.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.encoded.read, whole.encoded.hidden[torch.arange(5), answer])
    assert (whole.text.ids[torch.arange(5), answer] == network.config.tokens.mask).all()


@pytest.mark.parametrize("narrow", [False, True])
def test_attention_probabilities_give_the_context_of_the_layer(network, narrow):
    vlbert, seen = network.vlbert, {}
    vlbert.encoder.layer[1].attention.output.register_forward_pre_hook(
        lambda module, args: seen.update(context=args[0])
    )
    if not narrow:
        vlbert.encoder.set_reads(("hidden",))
    text = torch.randint(1, 40, (2, 3))
    output = vlbert(
        text,
        torch.zeros_like(text),
        torch.randn(2, 3, 12).double(),
        text > 0,
        torch.randn(2, 2, 24).double(),
        torch.tensor([[1, 1], [1, 0]]),
        read_at=torch.tensor([2, 1]),
        all_layers=True,
        attention=True,
    )
    probabilities = output.attention[1]
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 3, 6).double())
    assert probabilities[1, :, :, 5].max() < 1e-12, "padding is attended to"
    # Within the layers the row that is read stands first.
    swap = torch.tensor([[2, 1, 0, 3, 4, 5], [1, 0, 2, 3, 4, 5]])[..., None].expand(-1, -1, 12)
    seen["context"] = seen["context"].gather(1, swap)
    value = vlbert.encoder.layer[1].attention.self.value(output.layers[0])
    context = probabilities @ value.unflatten(-1, (3, -1)).transpose(1, 2)
    torch.testing.assert_close(context.transpose(1, 2).flatten(2), seen["context"])


@pytest.mark.parametrize(("act", "theirs"), [("gelu", "gelu"), ("relu", "relu"), ("swish", "silu")])
def test_the_layers_are_those_of_transformers(act, theirs):
    ours = randomise(VisualLinguisticBert(replace(vlbert_config().encoder, hidden_act=act)))
    bert = BertModel(
        BertConfig(
            hidden_size=12,
            num_hidden_layers=3,
            num_attention_heads=3,
            intermediate_size=20,
            vocab_size=40,
            hidden_act=theirs,
            max_position_embeddings=24,
        ),
        add_pooling_layer=False,
    ).eval()
    bert.encoder.load_state_dict(ours.encoder.state_dict())
    x = torch.randn(2, 6, 12)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    additive = (1.0 - mask)[:, None, None] * -10000.0
    state = ours.eval().encoder.run_layers({"hidden": x, "hidden.mask": additive})
    expected = bert.encoder(x, attention_mask=additive).last_hidden_state
    torch.testing.assert_close(state["hidden"], expected, rtol=0, atol=2e-6)


def test_frozen_words_learn_only_in_their_special_copy():
    config = replace(vlbert_config().encoder, word_embedding_frozen=True, vocab_size=1010)
    model = VisualLinguisticBert(config)
    ids = torch.tensor([[5, 999, 1000, 1009]])
    assert torch.equal(model.words(ids), model.word_embeddings(ids))  # the copy starts equal
    model.words(ids).sum().backward()
    assert model.word_embeddings.weight.grad is None
    changed = model.special_word_embeddings.weight.grad.sum(1).nonzero().flatten()
    assert changed.tolist() == [5, 999]


def test_no_grounding_hides_the_image_from_the_text():
    config = replace(vlbert_config(), no_grounding=True)
    network = randomise(ResNetVLBERT(config)).double().eval()
    assert network.run(**vlbert_inputs(2)).text_visual.abs().max() == 0


def test_training_mode_returns_the_network(network):
    assert network.train() is network and network.eval() is network


@pytest.mark.parametrize("kind", ["mlm", "1fc", "2fc"])
def test_every_classifier_works_without_bert_and_learns(kind):
    torch.manual_seed(0)
    network = ResNetVLBERT(replace(vlbert_config(), classifier=kind, classifier_hidden_size=8))
    network = network.double().train()
    logits = network(**vlbert_inputs(3))
    F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)).backward()
    assert logits.shape == (3, 5)
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in network.final_mlp.parameters()
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EncoderConfig(hidden_act="tanh"), "unknown activation 'tanh'.*gelu, relu, swish"),
        (lambda: EncoderConfig(hidden_size=10, num_attention_heads=3), "10 does not divide into 3"),
        (lambda: EncoderConfig(type_vocab_size=2), "type_vocab_size 2"),
        (lambda: NetworkConfig(classifier="3fc"), "unknown classifier '3fc'.*mlm, 1fc, 2fc"),
        (lambda: NetworkConfig(image=ImageConfig(final_dim=512)), "512 .*visual_size 768.*equal"),
        (lambda: ImageConfig(depth=42), "42 layers.*18, 34, 50, 101, 152"),
        (lambda: ImageConfig(frozen_stages=(1, 6)), r"\[6\].*1 to 5"),
        (
            lambda: EncoderConfig.from_upstream({"obj_pos_id_relative": False}),
            "obj_pos_id_relative",
        ),
        (lambda: ImageConfig.from_upstream({"IMAGE_SEMANTIC": True}), "IMAGE_SEMANTIC true"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_inputs_that_do_not_fit_are_refused(network):
    inputs = vlbert_inputs(2)
    with pytest.raises(DataError, match="width 6, the model was built for 7"):
        network(**inputs | {"boxes": inputs["boxes"][..., :-1]})
    with pytest.raises(DataError, match="no sample of the batch has a box"):
        network(**inputs | {"boxes": torch.full_like(inputs["boxes"], -2.0)})
    with pytest.raises(DataError, match="positions, the model has 24"):
        network(**inputs | {"question": torch.ones(2, 30, dtype=torch.long)})
