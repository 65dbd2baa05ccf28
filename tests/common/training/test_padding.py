"""Fixed lengths: few shapes, and results that do not depend on padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.adapt.adapting import adaptive_part
from common.modules.attention import AttentionOptions
from common.training.padding import padded, region_lengths, text_lengths
from lxrt.inputs import LxmertInputs
from tests.common.tiny_models import BATCH, FAMILIES, adapted
from vilbert.inputs import Limits, ViLBertInputs
from vlbert.vqa_dataset import Transform, VLBertInputs

# The tiny inputs have 6 tokens and 4 regions; they become 8 and 9.
MAKERS = {
    "lxmert": (LxmertInputs(None), (2, 9)),
    "vlbert": (VLBertInputs(None, Transform(), 12), (1, 8)),
    "vilbert": (ViLBertInputs(None, Limits(16, 9)), (1, 100)),
}
CASES = [
    ("standard", {}),
    ("SpotTune_Block", {"policy": "published"}),
    ("SpotTune_Res", {}),
    ("SpotTune", {"executor": "dense"}),
    ("SpotTune", {"executor": "grouped"}),
    ("BlockDrop", {}),
    ("BlockReplace", {}),
    ("SpotTune_Block", {"attention": AttentionOptions("entmax", "keys", initial_span=0.6)}),
    (
        "standard",
        {"attention": AttentionOptions("softmax", "distance", 0.3, 0.6, span_policy=True)},
    ),
]


def longer(family: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    make, regions = MAKERS[family]
    found = make.padded(inputs, regions)
    names = [name for name in inputs if inputs[name].ndim > 1 and name != "im_info"]
    assert all(found[name].shape[1] > inputs[name].shape[1] for name in names)
    return found


def outcome(model: nn.Module, inputs: dict[str, Tensor], training: bool) -> list[Tensor]:
    """Logits, decisions and, in training, the loss and all gradients."""
    model.train(training).zero_grad()
    if (part := adaptive_part(model)) is not None:
        part.tell(3, 5, list(range(BATCH)))
    with torch.set_grad_enabled(training):
        logits = model(**inputs)
    found = [logits.detach()] + ([part.last.decisions.detach()] if part is not None else [])
    if training:
        loss = F.binary_cross_entropy_with_logits(logits, torch.eye(BATCH, 5).double())
        loss.backward()
        found += [loss.detach()]
        found += [p.grad if p.grad is not None else torch.zeros(()) for p in model.parameters()]
    return found


@pytest.mark.parametrize(("strategy", "settings"), CASES)
@pytest.mark.parametrize("family", MAKERS)
def test_losses_gradients_and_answers_do_not_depend_on_padding(family, strategy, settings):
    model = adapted(family, strategy, **settings)
    inputs = FAMILIES[family].inputs(BATCH)
    for training in (True, False):
        expected = outcome(model, inputs, training)
        found = outcome(model, longer(family, inputs), training)
        assert any(x.abs().max() > 1e-3 for x in expected[2:]) or not training
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_the_packed_sequence_is_as_long_as_texts_and_boxes_are_padded():
    model = adapted("vlbert", "standard")
    inputs = FAMILIES["vlbert"].inputs(BATCH)
    lengths = set()
    for rows in ([0, 1], [2, 3, 4], [5]):
        found = MAKERS["vlbert"][0].padded({n: x[rows] for n, x in inputs.items()}, (1, 8))
        lengths.add(model.run(**found).encoded.packing.mask.shape[1])
    assert lengths == {8 + 4 + 5 + 1}
    assert model.run(**inputs).encoded.packing.mask.shape[1] < 6 + 4 + 4 + 1


def test_texts_have_few_lengths():
    assert text_lengths(20) == [8, 16, 20]
    assert text_lengths(16) == [8, 16]
    assert text_lengths(7) == [7]
    assert text_lengths(505) == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 505]
    assert text_lengths(None)[:6] == [8, 16, 24, 32, 48, 64]


def test_regions_are_padded_where_images_differ():
    assert region_lengths((36, 36)) == [36]
    assert region_lengths((10, 100), more=1) == [51, 101]
    assert region_lengths((60, 100), more=1) == [101]
    assert region_lengths((1, 1)) == [1]


def test_a_run_has_at_most_six_shapes():
    make, regions = LxmertInputs(None), (10, 100)
    shapes = set()
    for tokens in range(2, 21):
        for boxes in range(10, 101, 9):
            inputs = {
                "input_ids": torch.ones(1, tokens),
                "input_mask": torch.ones(1, tokens),
                "features": torch.ones(1, boxes, 2),
                "boxes": torch.ones(1, boxes, 4),
                "region_mask": None,
            }
            found = make.padded(inputs, regions)
            assert int(found["input_mask"].sum()) == tokens
            assert int(found["region_mask"].sum()) == boxes
            shapes.add(tuple(x.shape for x in found.values()))
    assert len(shapes) == 6


def test_regions_of_equal_number_stay_as_they_are():
    inputs = {
        "input_ids": torch.ones(2, 8),
        "input_mask": torch.ones(2, 8),
        "features": torch.ones(2, 36, 3),
        "boxes": torch.ones(2, 36, 4),
        "region_mask": None,
    }
    found = LxmertInputs(None).padded(inputs, (36, 36))
    assert all(found[name] is inputs[name] for name in inputs)


def test_what_is_longer_than_all_lengths_stays():
    assert padded({"x": torch.ones(1, 9), "y": None}, {"x": 0, "y": 0}, [4, 8])["x"].shape == (1, 9)
