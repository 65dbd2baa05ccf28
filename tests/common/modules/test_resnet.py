"""Folded norms, pooling of two kinds, widths that are not usual; pixels as a ResNet reads them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.modules.pixels import normalised_bgr, pad_images, sample_bilinear
from common.modules.resnet import ResNetBackbone, Widths, fold_norms, last_stage


def randomise(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.double().eval()


@pytest.mark.parametrize("depth", [18, 50])
def test_folded_norms_change_nothing(depth: int) -> None:
    torch.manual_seed(0)
    model = randomise(nn.Sequential(ResNetBackbone(depth, 8), last_stage(depth, 8)))
    image = torch.randn(1, 3, 70, 50, dtype=torch.float64)
    expected = model(image)
    fold_norms(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    found = model(image)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize(("side", "rows"), [(800, 50), (1067, 67), (1333, 84), (600, 38)])
def test_the_feature_map_has_the_sides_of_caffes_pooling(side: int, rows: int) -> None:
    with torch.device("meta"):
        model = ResNetBackbone(50, widths=Widths(8, 4, 16), caffe_pool=True)
        assert model(torch.empty(1, 3, side, 64)).shape == (1, 64, rows, 4)


def test_groups_and_widths_are_those_asked_for() -> None:
    model = ResNetBackbone(50, widths=Widths(8, 12, 20, groups=3))
    block = model.layer2[0]
    assert block.conv2.groups == 3 and block.conv2.weight.shape == (24, 8, 3, 3)
    assert block.conv3.out_channels == block.downsample[0].out_channels == 40
    assert last_stage(50, widths=Widths(8, 12, 20, groups=3))[0].conv1.in_channels == 80


@pytest.mark.parametrize("size", [(64, 96), (300, 200), (7, 5), (40, 60), (1, 333), (613, 471)])
def test_pixels_are_sampled_as_torch_interpolates_them(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8, generator=generator)
    whole = pixels.permute(2, 0, 1)[None].float()
    expected = F.interpolate(whole, size, mode="bilinear", align_corners=False)[0]
    found = sample_bilinear(pixels, *size)
    torch.testing.assert_close(found.permute(2, 0, 1), expected, rtol=0, atol=1e-4)


def test_red_is_the_last_channel() -> None:
    pixels = torch.zeros(2, 2, 3)
    pixels[..., 0] = 200  # red
    found = normalised_bgr(pixels, (1, 2, 3), (1, 1, 2))
    assert found[:, 0, 0].tolist() == [-1, -2, 98.5]


def test_smaller_images_have_the_value_to_the_right_and_below() -> None:
    batch = pad_images([torch.ones(3, 2, 5), torch.ones(3, 4, 1)], 7.0)
    assert batch.shape == (2, 3, 4, 5)
    assert batch[0, :, 2:].eq(7).all() and batch[1, :, :, 1:].eq(7).all()
    assert batch[0, :, :2].eq(1).all()
