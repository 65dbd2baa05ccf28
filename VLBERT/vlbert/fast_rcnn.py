"""The image side of VL-BERT: a visual embedding for each box.

From region features that come with the boxes, or from the image: ResNet, ROIAlign, last stage.
Shape legend: B batch, K boxes, F width of the region features, V width of the embeddings.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.errors import DataError
from common.modules.resnet import ResNetBackbone, last_stage
from common.modules.roi_align import roi_align
from common.modules.shapes import shapes_are_static
from vlbert.boxes import box_mask, coordinate_embedding
from vlbert.sizes import ImageConfig

STRIDE = 16
GRID = 14  # bins per side that the last stage reads


class Regions(NamedTuple):
    """The boxes of a batch, cropped to the longest list unless it is of a fixed length.

    Attributes:
        mask: (B, K) bool, true where there is a box.
        boxes: (B, K, 4) corners in pixels.
        features: (B, K, F), from the file or from the ResNet.
        embedding: (B, K, V), 0 where there is no box.
    """

    mask: Tensor
    boxes: Tensor
    features: Tensor
    embedding: Tensor


class FastRCNN(nn.Module):
    """Upstream's `image_feature_extractor`; the ResNet exists only where images are read."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.config = config
        if not config.precomputed:
            self.backbone = ResNetBackbone(config.depth, config.channels, config.stride_in_1x1)
            self.roi_head_feature_extractor = last_stage(
                config.depth, config.channels, config.dilated, config.stride_in_1x1
            )
            # The last stage once more, as in the released files.
            self.head = nn.Sequential(
                self.roi_head_feature_extractor,
                nn.AvgPool2d(GRID if config.dilated else GRID // 2),
                nn.Flatten(),
            )
            self.freeze()
        self.obj_downsample = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(8 * config.waves + config.region_size, config.final_dim),
            nn.ReLU(),
        )

    def stages(self) -> dict[int, list[nn.Module]]:
        """The modules of each stage by its number in the configs."""
        backbone = self.backbone
        return {
            1: [backbone.conv1, backbone.bn1],
            2: [backbone.layer1],
            3: [backbone.layer2],
            4: [backbone.layer3],
            5: [self.roi_head_feature_extractor],
        }

    def freeze(self) -> None:
        """Freeze the stages and batch normalisations that the config freezes."""
        for module in self.frozen_modules():
            module.requires_grad_(False)

    def frozen_modules(self) -> list[nn.Module]:
        """Frozen stages and, with `frozen_bn`, every batch normalisation."""
        frozen = [
            module for number in self.config.frozen_stages for module in self.stages()[number]
        ]
        if self.config.frozen_bn:
            frozen += [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]
        return frozen

    def train(self, mode: bool = True) -> FastRCNN:
        """As always, but what is frozen stays in evaluation mode: its statistics do not move."""
        super().train(mode)
        if not self.config.precomputed:
            for module in self.frozen_modules():
                module.eval()
        return self

    def forward(
        self,
        boxes: Tensor,
        im_info: Tensor,
        image: Tensor | None = None,
        masked: Tensor | None = None,
        mask_feature: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Regions:
        """Embed the boxes of a batch.

        Args:
            boxes: (B, K, 4 + F) with precomputed features, else (B, K, 4); padding is -2.
            im_info: (B, 2 or more) width and height of the image first.
            image: (B, 3, H, W), without precomputed features.
            masked: (B, K) bool, boxes whose features become `mask_feature` (F,).
            present: (B, K) bool, which boxes there are, of a batch that is padded to a fixed
                length and keeps it; None: those that are not padding, cut to the longest list.
        """
        mask, longest = present, boxes.shape[1]
        if mask is None:
            mask = box_mask(boxes)
            longest = longest if shapes_are_static() else int(mask.sum(1).max())
        if longest == 0:
            raise DataError(
                "no sample of the batch has a box: every image needs at least one "
                "(the whole image as a box: ADD_IMAGE_AS_A_BOX)"
            )
        boxes, mask = boxes[:, :longest], mask[:, :longest]
        corners = boxes[..., :4]
        if self.config.precomputed:
            features = self.precomputed(boxes)
        else:
            features = self.pooled(image, corners, mask)
        if masked is not None and mask_feature is not None:
            chosen = masked[:, :longest, None]
            features = torch.where(chosen, mask_feature.to(features.dtype), features)
        places = coordinate_embedding(corners, im_info[:, None, :2], self.config.waves).flatten(2)
        embedding = self.obj_downsample(torch.cat([places.to(features.dtype), features], -1))
        return Regions(mask, corners, features, embedding.masked_fill(~mask[..., None], 0.0))

    def precomputed(self, boxes: Tensor) -> Tensor:
        """The features behind the corners: (B, K, 4 + F) -> (B, K, F)."""
        width = boxes.shape[-1] - 4
        if width != self.config.feature_size:
            raise DataError(
                f"region features of width {width}, the model was built for "
                f"{self.config.feature_size}"
            )
        return boxes[..., 4:]

    def pooled(self, image: Tensor | None, corners: Tensor, mask: Tensor) -> Tensor:
        """Features (B, K, F) of the boxes (B, K, 4) in the images (B, 3, H, W)."""
        if image is None:
            raise DataError(
                "the model reads images (IMAGE_FEAT_PRECOMPUTED false), but the batch has none"
            )
        maps = self.backbone(image)
        sample, slot = mask.nonzero(as_tuple=True)
        rois = torch.cat([sample[:, None].to(corners.dtype), corners[sample, slot]], 1)
        with torch.autocast(image.device.type, enabled=False):
            wide = maps if maps.dtype == torch.float64 else maps.float()
            bins = roi_align(wide, rois.to(wide.dtype), (GRID, GRID), 1 / STRIDE)
        found = self.head(bins.to(maps.dtype))
        features = found.new_zeros(*mask.shape, found.shape[-1])
        return features.index_put((sample, slot), found)
