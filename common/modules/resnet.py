"""ResNets up to the third stage, and their last stage as a head on regions (Fast R-CNN "C4").

Parameter names are those of torchvision. Activations are written over what they are made of, which
no gradient needs. Shape legend: N images or regions, C channels, H x W.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (ResNet-18 and -34)."""

    expansion = 1

    def __init__(
        self,
        inputs: int,
        planes: int,
        stride: int = 1,
        dilation: int = 1,
        stride_in_1x1: bool = False,
    ) -> None:
        """`stride_in_1x1` has no meaning here: the first convolution has the stride."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, planes, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y.add_(x if self.downsample is None else self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut (ResNet-50 and deeper)."""

    expansion = 4

    def __init__(
        self,
        inputs: int,
        planes: int,
        stride: int = 1,
        dilation: int = 1,
        stride_in_1x1: bool = False,
        outputs: int | None = None,
        groups: int = 1,
    ) -> None:
        """`outputs`: by default 4 * planes; `groups`: of the 3x3 convolution (ResNeXt)."""
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        outputs = outputs or planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(
            planes, planes, 3, second, dilation, dilation, groups=groups, bias=False
        )
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y.add_(x if self.downsample is None else self.downsample(x)), inplace=True)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """A 1x1 convolution where the shortcut changes the shape, else None (the identity)."""
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def stage(
    block: type[BasicBlock] | type[Bottleneck],
    inputs: int,
    planes: int,
    blocks: int,
    stride: int,
    dilation: int = 1,
    stride_in_1x1: bool = False,
    **widths: int,
) -> nn.Sequential:
    """A stage of residual blocks, the first of which has the stride; all have the dilation.

    `widths`: `outputs` and `groups` of a `Bottleneck`.
    """
    outputs = widths.get("outputs", planes * block.expansion)
    modules = [block(inputs, planes, stride, dilation, stride_in_1x1, **widths)]
    modules += [
        block(outputs, planes, 1, dilation, stride_in_1x1, **widths) for _ in range(blocks - 1)
    ]
    return nn.Sequential(*modules)


@dataclass(frozen=True)
class Widths:
    """Channels of a ResNet that is not of the usual shape.

    Attributes:
        stem: of the first convolution.
        planes: of the 3x3 convolutions of the first stage; every further stage has twice as many.
        outputs: of the first stage, likewise.
        groups: of the 3x3 convolutions.
    """

    stem: int
    planes: int
    outputs: int
    groups: int = 1

    def of_stage(self, number: int) -> tuple[int, dict[str, int]]:
        """Planes of a stage, from 1, and the widths of its blocks."""
        factor: int = 2 ** (number - 1)
        return self.planes * factor, {"outputs": self.outputs * factor, "groups": self.groups}


class ResNetBackbone(nn.Module):
    """Convolution, pooling and the first three stages; the feature map has stride 16."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self,
        depth: int,
        channels: int = 64,
        stride_in_1x1: bool = True,
        widths: Widths | None = None,
        caffe_pool: bool = False,
    ) -> None:
        """Make it with fresh weights.

        Args:
            depth: A key of `BLOCKS`.
            channels: Of the first convolution.
            stride_in_1x1: Whether a bottleneck's first convolution has the stride, not its second.
            widths: Instead of `channels`; of bottlenecks.
            caffe_pool: Pool without padding on the left, beyond the map on the right.
        """
        super().__init__()
        block, blocks = block_type(depth), BLOCKS[depth]
        stem = channels if widths is None else widths.stem
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, 2, 0 if caffe_pool else 1, ceil_mode=caffe_pool)
        inputs = stem
        for number, stride in ((1, 1), (2, 2), (3, 2)):
            planes, more = channels * 2 ** (number - 1), dict[str, int]()
            if widths is not None:
                planes, more = widths.of_stage(number)
            setattr(
                self,
                f"layer{number}",
                stage(block, inputs, planes, blocks[number - 1], stride, 1, stride_in_1x1, **more),
            )
            inputs = more.get("outputs", planes * block.expansion)
        init_convolutions(self.modules())

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C, h, w), h about H / 16."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(images)), inplace=True))
        found: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return found


def last_stage(
    depth: int,
    channels: int = 64,
    dilated: bool = True,
    stride_in_1x1: bool = True,
    widths: Widths | None = None,
) -> nn.Sequential:
    """The fourth stage: dilated by 2 at full resolution in all its blocks, or with stride 2."""
    block = block_type(depth)
    stride, dilation = (1, 2) if dilated else (2, 1)
    planes, more = 8 * channels, dict[str, int]()
    inputs = 4 * channels * block.expansion
    if widths is not None:
        planes, more = widths.of_stage(4)
        inputs = more["outputs"] // 2
    head = stage(block, inputs, planes, BLOCKS[depth][3], stride, dilation, stride_in_1x1, **more)
    init_convolutions(head.modules())
    return head


def block_type(depth: int) -> type[BasicBlock] | type[Bottleneck]:
    """The residual block of a ResNet with so many layers."""
    return Bottleneck if depth >= 50 else BasicBlock


def init_convolutions(modules: Iterable[nn.Module]) -> None:
    """Fresh convolutions as in He et al. 2015 (fan out, for ReLU)."""
    for module in modules:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@torch.no_grad()
def fold_norms(model: nn.Module) -> None:
    """Fold every batch normalisation, in evaluation mode, into the convolution before it.

    In place, for inference: `bn1` beside `conv1` and so on, and the pairs of shortcuts, become a
    convolution with a bias and the identity. Equal up to rounding.
    """
    for module in model.modules():
        children = dict(module.named_children())
        for name, norm in children.items():
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            in_sequence = isinstance(module, nn.Sequential)
            before = str(int(name) - 1) if in_sequence else name.replace("bn", "conv")
            convolution = cast(nn.Conv2d, children[before])
            setattr(module, before, fuse_conv_bn_eval(convolution, norm))
            setattr(module, name, nn.Identity())
