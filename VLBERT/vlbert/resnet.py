"""ResNets up to the third stage, and their last stage as a head on regions (Fast R-CNN "C4").

Parameter names are those of torchvision. Shape legend: N images or regions, C channels, H x W.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F

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
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


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
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, second, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, 4 * planes, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


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
) -> nn.Sequential:
    """A stage of residual blocks, the first of which has the stride; all have the dilation."""
    modules = [block(inputs, planes, stride, dilation, stride_in_1x1)]
    modules += [
        block(planes * block.expansion, planes, 1, dilation, stride_in_1x1)
        for _ in range(blocks - 1)
    ]
    return nn.Sequential(*modules)


class ResNetBackbone(nn.Module):
    """Convolution, pooling and the first three stages; the feature map has stride 16."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, depth: int, channels: int = 64, stride_in_1x1: bool = True) -> None:
        super().__init__()
        block, blocks = block_type(depth), BLOCKS[depth]
        self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = channels
        for number, stride in ((1, 1), (2, 2), (3, 2)):
            planes = channels * 2 ** (number - 1)
            setattr(
                self,
                f"layer{number}",
                stage(block, inputs, planes, blocks[number - 1], stride, 1, stride_in_1x1),
            )
            inputs = planes * block.expansion
        init_convolutions(self.modules())

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C, ceil(H / 16), ceil(W / 16))."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        return self.layer3(self.layer2(self.layer1(x)))


def last_stage(
    depth: int, channels: int = 64, dilated: bool = True, stride_in_1x1: bool = True
) -> nn.Sequential:
    """The fourth stage: dilated by 2 at full resolution in all its blocks, or with stride 2."""
    block = block_type(depth)
    stride, dilation = (1, 2) if dilated else (2, 1)
    head = stage(
        block,
        4 * channels * block.expansion,
        8 * channels,
        BLOCKS[depth][3],
        stride,
        dilation,
        stride_in_1x1,
    )
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
