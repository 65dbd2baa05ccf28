"""ViLBERT's heads for tasks and for pretraining, and what of them is trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import weight_norm

from common.adapt.adapting import adapt
from common.errors import ConfigError
from tests.common.tiny_models import vilbert_config
from tests.vilbert.formulas import affine, normed
from tests.vilbert.models import (
    BATCH,
    close,
    inputs_of,
    randomise,
    tasks_model,
    under,
    without_gradient,
)
from vilbert.heads import (
    HEADS,
    ON_POOLED,
    BertForMultiModalPreTraining,
    NormedLinear,
    VILBertForVLTasks,
    VILBertForVQA,
    output_of,
)
from vilbert.loading import freeze_text
from vilbert.modeling import fuse


@pytest.mark.parametrize("fusion", ["mul", "sum"])
def test_the_seven_heads_say_what_their_formulas_say(fusion):
    model, inputs = tasks_model(fusion_method=fusion, v_hidden_act="relu"), inputs_of(BATCH)
    found, encoded = model(**inputs), model.bert(**inputs)
    pooled = encoded.pooled_lang * encoded.pooled_vision
    if fusion == "sum":
        pooled = encoded.pooled_lang + encoded.pooled_vision
    close(fuse(model.config, encoded), pooled)
    hidden = pooled
    for place in (0, 3):
        layer = model.vil_prediction.main[place]
        weight = 8.0 * layer.weight_v / layer.weight_v.square().sum().sqrt()
        hidden = (hidden if place == 0 else hidden.clamp(min=0)) @ weight.T + layer.bias
    close(found.vil_prediction, hidden)
    close(found.vil_logit, affine(pooled, model.vil_logit))
    close(found.vil_binary_prediction, affine(pooled, model.cls.bi_seq_relationship))
    close(found.linguisic_logit, affine(encoded.lang, model.linguisic_logit))
    choice = affine(encoded.vision, model.vision_logit)
    close(found.vision_logit, choice - 10000.0 * (1 - inputs["image_attention_mask"][..., None]))

    def transformed(x: Tensor, transform: nn.Module) -> Tensor:
        # Of the regions as well the activation is the text's, gelu.
        return normed(F.gelu(affine(x, transform.dense)), transform.LayerNorm)

    regions, words = model.cls.imagePredictions, model.cls.predictions
    close(
        found.vision_prediction,
        affine(transformed(encoded.vision, regions.transform), regions.decoder),
    )
    table = model.bert.embeddings.word_embeddings.weight
    close(
        found.linguisic_prediction,
        transformed(encoded.lang, words.transform) @ table.T + words.bias,
    )
    shapes = {name: tuple(x.shape) for name, x in output_of(found).items()}
    assert list(shapes) == list(HEADS)
    assert list(shapes.values()) == [
        *((4, 5), (4, 1), (4, 2), (4, 4, 6), (4, 4, 1), (4, 6, 40), (4, 6, 1))
    ]


OF_HEAD = {
    "vil_prediction": "vil_prediction.",
    "vil_logit": "vil_logit.",
    "vil_binary_prediction": "cls.bi_seq_relationship.",
    "vision_prediction": "cls.imagePredictions.",
    "vision_logit": "vision_logit.",
    "linguisic_prediction": "cls.predictions.",
    "linguisic_logit": "linguisic_logit.",
}


@pytest.mark.parametrize("used", [*((head,) for head in HEADS), HEADS[1:4], HEADS[4:6], HEADS])
def test_heads_that_are_used_say_the_same_and_the_others_get_no_gradient(used):
    whole, model, inputs = tasks_model(), tasks_model(), inputs_of(BATCH)
    model.use(used)
    expected, found = output_of(whole(**inputs)), output_of(model(**inputs))
    assert tuple(found) == model.used == tuple(used)
    for name, x in found.items():
        close(x, expected[name])
        found[name], expected[name] = x.clamp(min=-100).square(), expected[name].clamp(min=-100)
    torch.cat([x.flatten() for x in found.values()]).sum().backward()
    missing = without_gradient(model)
    for head, start in OF_HEAD.items():
        own = under(dict(model.named_parameters()), start)
        assert own and own <= missing if head not in used else not own & missing, head
    torch.cat([expected[name].square().flatten() for name in used]).sum().backward()
    ours = dict(model.named_parameters())
    for name, p in whole.named_parameters():
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        close(torch.zeros_like(p) if ours[name].grad is None else ours[name].grad, grad)
    poolers = under(missing, "bert.t_pooler.", "bert.v_pooler.")
    assert len(poolers) == (0 if set(used) & set(ON_POOLED) else 4)


def wants_what_it_gets(model: nn.Module) -> bool:
    """Whether those parameters got a gradient that want one; else DDP would wait for them."""
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    return wanted == {name for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("used", [*((head,) for head in HEADS), HEADS])
def test_every_parameter_that_wants_a_gradient_gets_one(used):
    """Once what nothing reads was frozen, which `adapt` does."""
    model = tasks_model()
    model.use(used)
    adapt(model)
    torch.cat([x.flatten() for x in output_of(model(**inputs_of(BATCH))).values()]).sum().backward()
    assert wants_what_it_gets(model)


def test_every_parameter_of_pretraining_that_wants_a_gradient_gets_one():
    model = randomise(BertForMultiModalPreTraining(vilbert_config())).double()
    torch.cat([x.flatten() for x in model(**inputs_of(BATCH)).values()]).sum().backward()
    assert wants_what_it_gets(model)


def test_heads_can_be_chosen_again_and_unknown_ones_are_refused():
    model, inputs = tasks_model(), inputs_of(2)
    expected = model(**inputs)
    model.use(["vil_logit"])
    model.use(HEADS[::-1])
    assert model.used == HEADS
    for found, wanted in zip(model(**inputs), expected, strict=True):
        close(found, wanted)
    with pytest.raises(ConfigError, match=r"unknown heads \['vil_logits'\]; there are vil_pred"):
        model.use(["vil_logits"])
    with pytest.raises(ConfigError, match="before it is adapted"):
        adapt(model, "SpotTune_Block").use(["vil_logit"])


def test_the_model_of_questions_has_the_answers_of_the_whole_model():
    whole, inputs = tasks_model(), inputs_of(BATCH)
    model = VILBertForVQA(vilbert_config()).double().eval()
    model.load_state_dict(whole.state_dict())
    close(model(**inputs), whole(**inputs).vil_prediction)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_normed_layer_is_torchs_weight_norm_of_a_whole_matrix():
    torch.manual_seed(0)
    ours = NormedLinear(7, 4).double()
    assert ours.weight_g.item() == pytest.approx(ours.weight_v.norm().item(), rel=1e-6)
    assert not ours.bias.any() and ours.weight_v.abs().max() <= 7**-0.5
    with torch.no_grad():
        ours.weight_g.fill_(2.5)
        ours.bias.normal_()
    theirs = weight_norm(nn.Linear(7, 4).double(), dim=None)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, 7).double()
    results = []
    for layer in (ours, theirs):
        given = x.clone().requires_grad_()
        out = layer(given)
        out.square().sum().backward()
        results.append((out, given.grad, {n: p.grad for n, p in layer.named_parameters()}))
    (out, grad, grads), (expected, expected_grad, expected_grads) = results
    close(out, expected)
    close(grad, expected_grad)
    assert set(grads) == set(expected_grads) == {"bias", "weight_g", "weight_v"}
    for name, x in expected_grads.items():
        close(grads[name], x)


def test_freezing_text_layers_trains_the_rest():
    model = randomise(VILBertForVQA(vilbert_config())).double()
    before = {name for name, p in model.named_parameters() if not p.requires_grad}
    freeze_text(model, -1)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == before
    freeze_text(model, 1)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad} - before
    assert frozen == under(
        dict(model.named_parameters()),
        *("bert.embeddings.", "bert.encoder.layer.0.", "bert.encoder.layer.1."),
    )
    model(**inputs_of(BATCH)).square().sum().backward()
    assert frozen <= without_gradient(model)
    assert model.bert.encoder.layer[2].output.dense.weight.grad.abs().sum() > 0
    with pytest.raises(ConfigError, match="--freeze 3: the text layers are 0 to 2"):
        freeze_text(model, 3)


def test_the_pretraining_model_has_the_heads_of_the_model_of_tasks():
    whole, inputs = tasks_model(), inputs_of(BATCH)
    model = BertForMultiModalPreTraining(vilbert_config()).double().eval()
    own = model.state_dict()
    model.load_state_dict({n: x for n, x in whole.state_dict().items() if n in own})
    found, expected = model(**inputs), whole(**inputs)
    close(found["words"], expected.linguisic_prediction)
    close(found["regions"], expected.vision_prediction)
    close(found["aligned"], expected.vil_binary_prediction)
    places = inputs["input_ids"] % 2 == 1
    close(model(**inputs, word_places=places)["words"], found["words"][places])


def test_new_models_are_drawn_as_the_originals():
    """N(0, initializer_range), the padding row too; torch's own start of the normed layers."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 60, "v_hidden_size": 64, "bi_hidden_size": 64}
    model = VILBertForVLTasks(vilbert_config(**sizes, initializer_range=0.05, num_labels=40))
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)) and module.weight.numel() > 300:
            near = 5 * 0.05 / (2 * module.weight.numel()) ** 0.5
            assert abs(module.weight.std().item() - 0.05) < near, module
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all()
        if isinstance(module, (nn.Linear, NormedLinear)) and module.bias is not None:
            assert (module.bias == 0).all()
        if isinstance(module, NormedLinear):
            bound = module.weight_v.shape[1] ** -0.5
            assert 0.9 * bound < module.weight_v.abs().max() <= bound
            torch.testing.assert_close(module.weight_g, module.weight_v.norm())
    assert model.bert.embeddings.word_embeddings.weight[0].std() > 0.02
