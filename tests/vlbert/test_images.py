"""From images: ROIAlign, ResNet, what is frozen, training end to end."""

from __future__ import annotations

from dataclasses import replace
from math import floor

import pytest
import torch
from PIL import Image
from torch import nn

from common.adapt.adapting import adapt, adaptive_part
from common.adapt.sharing import SameRows, same_rows
from common.errors import CheckpointError, DataError
from common.modules.boxes import PIXEL, overlap
from common.modules.roi_align import roi_align
from tests.common.tiny_models import vlbert_config, vlbert_inputs
from tests.vlbert.models import IMAGES, randomise
from vlbert.boxes import box_mask
from vlbert.fast_rcnn import FastRCNN
from vlbert.loading import load_resnet
from vlbert.sizes import ImageConfig
from vlbert.transforms import transform_image
from vlbert.vqa_network import ResNetVLBERT

ROIS = [[0, 10, 20, 90, 100], [1, -40, -8, 30, 25], [0, 150, 60, 300, 260], [1, 48, 48, 48, 48]]


def one_sample(feature_map, y, x):
    """Bilinear sample of (H, W) at (y, x), by the definition."""
    height, width = feature_map.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = floor(y), floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    return float(
        (1 - dy) * ((1 - dx) * feature_map[top, left] + dx * feature_map[top, right])
        + dy * ((1 - dx) * feature_map[bottom, left] + dx * feature_map[bottom, right])
    )


def slow_roi_align(features, roi, rows, columns, scale, samples):
    image, x1, y1, x2, y2 = roi
    x1, y1, x2, y2 = (v * scale for v in (x1, y1, x2, y2))
    height, width = max(y2 - y1, 1) / rows, max(x2 - x1, 1) / columns
    result = torch.zeros(features.shape[1], rows, columns, dtype=features.dtype)
    for c in range(features.shape[1]):
        for p in range(rows):
            for q in range(columns):
                values = [
                    one_sample(
                        features[image, c],
                        y1 + (p + (i + 0.5) / samples) * height,
                        x1 + (q + (j + 0.5) / samples) * width,
                    )
                    for i in range(samples)
                    for j in range(samples)
                ]
                result[c, p, q] = sum(values) / len(values)
    return result


@pytest.mark.parametrize(("shape", "samples"), [((5, 4), 1), ((3, 2), 2)])
def test_roi_align_is_the_mean_of_bilinear_samples(shape, samples):
    features = torch.randn(2, 2, 9, 12, dtype=torch.float64)
    rois = torch.tensor(ROIS, dtype=torch.float64)
    found = roi_align(features, rois, shape, 1 / 16, samples)
    expected = torch.stack([slow_roi_align(features, roi, *shape, 1 / 16, samples) for roi in ROIS])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_roi_align_has_the_gradient_of_its_values():
    features = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(ROIS, dtype=torch.float64) / 2
    rois[:, 0] *= 2
    for samples in (0, 1):
        assert torch.autograd.gradcheck(
            lambda x, s=samples: roi_align(x, rois, (2, 3), 1 / 16, s), features
        )


def test_roi_align_of_no_box_is_empty():
    assert roi_align(torch.randn(1, 3, 4, 4), torch.zeros(0, 5), (2, 2), 1 / 16, 0).shape == (
        0,
        3,
        2,
        2,
    )


@pytest.mark.parametrize(
    ("depth", "dilated"),
    [(18, True), (18, False), (34, True), (50, True), (50, False), (101, True), (152, True)],
)
def test_every_resnet_gives_a_feature_for_each_box(depth, dilated):
    config = replace(IMAGES, depth=depth, dilated=dilated)
    boxes = torch.tensor([[[0, 0, 63, 47], [5, 6, 30, 40]], [[0, 0, 63, 47], [-2] * 4]]).float()
    images = FastRCNN(config).eval()
    with torch.no_grad():
        assert images.backbone(torch.randn(1, 3, 49, 64)).shape[2:] == (4, 4)
        regions = images(boxes, torch.tensor([[64.0, 48.0]] * 2), torch.randn(2, 3, 48, 64))
    assert regions.features.shape == (2, 2, config.region_size)
    assert box_mask(boxes).tolist() == regions.mask.tolist() == [[True, True], [True, False]]
    assert regions.features[1, 1].abs().max() == regions.embedding[1, 1].abs().max() == 0
    assert regions.features[0].abs().max(1).values.min() > 0


def test_a_batch_of_images_gives_what_each_image_gives():
    torch.manual_seed(0)
    model = FastRCNN(IMAGES).double().eval()
    images = torch.randn(2, 3, 48, 64, dtype=torch.float64)
    boxes = torch.tensor(
        [[[0, 0, 63, 47], [5, 6, 30, 40]], [[2, 3, 9, 40], [1, 2, 50, 33]]]
    ).double()
    sizes = torch.tensor([[64.0, 48.0]] * 2).double()
    with torch.no_grad():
        both = model(boxes, sizes, images).features
        alone = [model(boxes[i : i + 1], sizes[:1], images[i : i + 1]).features for i in (0, 1)]
    assert (both[0] - both[1]).abs().max() > 1e-3
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-10, atol=1e-12)


def test_an_image_is_read_once_for_all_of_its_questions():
    images = [1, 0, 1, 1]
    inputs = image_inputs(2)
    inputs["boxes"] = torch.tensor([[[0, 0, 63, 47], [5, 6, 30, 40]], [[0, 0, 9, 40], [-2] * 4]])
    given = {k: x[images] for k, x in inputs.items()}
    given["question"] = vlbert_inputs(4)["question"]
    given = {k: x if k == "question" else x.double() for k, x in given.items()}
    network = randomise(ResNetVLBERT(replace(vlbert_config(), image=IMAGES))).double().eval()
    seen: list[int] = []
    network.image_feature_extractor.backbone.register_forward_hook(
        lambda module, read, found: seen.append(len(found))
    )
    with torch.no_grad():
        expected = network(**given)
        with same_rows(vision=SameRows.of(images)):
            found = network(**given)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)
    assert seen == [4, 2] and (expected[0] - expected[1]).abs().max() > 1e-6


def image_inputs(batch: int = 2) -> dict:
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in vlbert_inputs(batch).items()}
    return inputs | {"boxes": inputs["boxes"][..., :4], "image": torch.randn(batch, 3, 80, 96)}


@pytest.mark.parametrize("frozen_bn", [True, False])
def test_training_end_to_end_moves_all_but_the_frozen_stages_and_statistics(frozen_bn):
    torch.manual_seed(0)
    config = replace(vlbert_config(), image=replace(IMAGES, frozen_bn=frozen_bn))
    network = ResNetVLBERT(config).train()
    for kind in ("text", "object"):
        nn.init.ones_(getattr(network.vlbert, f"visual_ln_{kind}").weight)
    before = {name: x.clone() for name, x in network.state_dict().items()}
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    network(**image_inputs()).square().sum().backward()
    optimizer.step()
    images = "image_feature_extractor"
    moved = {name for name, x in network.state_dict().items() if not torch.equal(x, before[name])}
    frozen = tuple(f"{images}.backbone.{name}" for name in ("conv1", "bn1", "layer1"))
    assert not [name for name in moved if name.startswith(frozen)]
    convolutions = {
        name
        for name in before
        if name.startswith(images) and ".conv" in name and not name.startswith(frozen)
    }
    assert convolutions <= moved
    statistics = {name for name in moved if "running" in name or ".bn" in name}
    assert bool(statistics) != frozen_bn
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert any(m.training for m in norms) != frozen_bn


def test_a_model_of_images_refuses_a_batch_without():
    network = ResNetVLBERT(replace(vlbert_config(), image=IMAGES))
    inputs = image_inputs()
    del inputs["image"]
    with pytest.raises(DataError, match="IMAGE_FEAT_PRECOMPUTED false"):
        network(**inputs)


def test_a_resnet_file_with_torchvisions_names_loads_strictly(tmp_path):
    source, target = (randomise(FastRCNN(IMAGES), seed=s) for s in (1, 2))
    weights = source.backbone.state_dict() | {
        f"layer4.{name}": x for name, x in source.roi_head_feature_extractor.state_dict().items()
    }
    weights |= {"fc.weight": torch.zeros(1000, 16), "fc.bias": torch.zeros(1000)}
    torch.save(weights, tmp_path / "resnet50-0000.model")
    load_resnet(target, tmp_path / "resnet50-0000.model")
    cnn = {n: x for n, x in target.state_dict().items() if "obj_downsample" not in n}
    assert all(torch.equal(x, source.state_dict()[name]) for name, x in cnn.items())
    del weights["layer3.5.conv2.weight"]
    torch.save(weights, tmp_path / "broken.model")
    with pytest.raises(CheckpointError, match="layer3.5.conv2.weight"):
        load_resnet(target, tmp_path / "broken.model")


def test_overlap_counts_both_corner_pixels():
    boxes = torch.tensor([[0.0, 0, 9, 9], [5, 0, 14, 9], [20, 20, 29, 29]])
    expected = torch.tensor([[1, 50 / 150, 0], [50 / 150, 1, 0], [0, 0, 1]])
    torch.testing.assert_close(overlap(boxes, boxes, PIXEL), expected)


def test_the_published_resnets_are_as_wide_as_precomputed_features():
    assert {ImageConfig(precomputed=False, depth=d).region_size for d in (50, 101, 152)} == {2048}
    assert ImageConfig(precomputed=False, depth=18).region_size == 512


def test_channels_are_blue_green_red():
    """A plain red picture has all of it in the last channel."""
    red = Image.new("RGB", (8, 6), (250, 20, 3))
    found = transform_image(red, (8, 6), False, (1.0, 2.0, 3.0), (1.0, 2.0, 10.0))
    assert found.shape == (3, 6, 8)
    assert found[:, 0, 0].tolist() == pytest.approx([(3 - 1) / 1, (20 - 2) / 2, (250 - 3) / 10])


def test_the_policy_s_loss_alone_does_not_train_the_image_extractor():
    """The published policy reads the regions' features, but sends no gradient into the CNN."""
    sizes = replace(vlbert_config(), image=IMAGES)
    network = randomise(ResNetVLBERT(sizes), 0.1).train()
    adapt(network, "SpotTune_Block", "published")
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in vlbert_inputs(2).items()}
    inputs["boxes"] = inputs["boxes"][..., :4]
    network.run(**inputs, image=torch.randn(2, 3, 80, 96))
    part = adaptive_part(network)
    part.last.logits.square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in part.policy.parameters())
    extractor = network.image_feature_extractor
    assert all(p.grad is None or not p.grad.any() for p in extractor.parameters())
