"""The Faster R-CNN of `unc-nlp/frcnn-vg-finetuned` as a detector of regions in photographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from common.detector.loading import DetectorFiles, find_files, load_network
from common.detector.names import read_names
from common.detector.network import CHUNK, FasterRCNN, RegionOutputs
from common.detector.regions import FoundRegions
from common.detector.scaling import scale_picture
from common.detector.selecting import Selection, select_as_tsv, select_regions
from common.errors import ConfigError
from common.modules.resnet import fold_norms

RULES = ("detector", "tsv")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Of ten photographs of COCO in the features that LXMERT was trained with (36 boxes, caffe), with
# room on both sides. The largest number of a feature, its mean, how many are exactly 0.
PLAUSIBLE = {
    "mean of the features": (0.25, 1.7),
    "largest feature": (10.0, 80.0),
    "share of features that are 0": (0.10, 0.65),
}


@dataclass(frozen=True)
class DetectorOptions:
    """How the detector is run.

    Attributes:
        fewest, most: regions of a picture; None: as its config says.
        rule: of `RULES`: the detector's own, or that of LXMERT's TSVs (bottom-up attention).
        device: cpu, cuda, cuda:1, ….
        precision: of the convolutions, of `PRECISIONS`; anything but fp32 gives other features.
        chunk: regions that the last stage computes at a time.
    """

    fewest: int | None = None
    most: int | None = None
    rule: str = "detector"
    device: str = "cpu"
    precision: str = "fp32"
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(f"rule {self.rule!r}: known are {', '.join(RULES)}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision {self.precision!r}: known are {', '.join(PRECISIONS)}")
        if self.chunk < 1:
            raise ConfigError(f"{self.chunk} regions at a time: give at least 1")
        if (self.fewest is None) != (self.most is None):
            raise ConfigError("fewest and most boxes belong together")
        if self.fewest is not None and not 1 <= self.fewest <= (self.most or 0):
            raise ConfigError(f"{self.fewest} to {self.most} boxes: give 1 to 1 or more")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise ConfigError(f"device {self.device!r}: cpu, cuda or cuda:N") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device {self.device}: torch sees no GPU here; leave it out")
        if self.precision == "fp16" and device.type == "cpu":
            raise ConfigError("precision fp16 is for a GPU; on the CPU bf16 is the faster one")


class FasterRCNNDetector:
    """Photographs to regions; one picture at a time, since padding changes features."""

    def __init__(self, network: FasterRCNN, files: DetectorFiles, options: DetectorOptions) -> None:
        """Make a loaded network ready, in place: norms are folded, weights laid out channels last.

        Args:
            network: with its weights.
            files: that it was loaded from.
            options: how it is run.
        """
        settings = network.settings
        self.settings, self.files, self.options = settings, files, options
        self.fewest = settings.fewest if options.fewest is None else options.fewest
        self.most = settings.most if options.most is None else options.most
        if self.fewest > settings.proposals:
            raise ConfigError(
                f"{self.fewest} boxes: the config of {files.folder} has {settings.proposals} "
                "proposals a picture (rpn.post_nms_topk_test)"
            )
        self.network = prepared(network, options)
        self.names = read_names(files.folder, settings.classes, settings.attributes)

    doubt = "no usual features: are these the weights of this config, and is it a photograph?"

    @classmethod
    def open(cls, folder: Path, options: DetectorOptions) -> FasterRCNNDetector:
        """Load the files in a folder.

        Raises:
            CheckpointError: a file is missing, damaged, or does not fit the config.
            DataError: a config that this code cannot do, or names of another detector.
            ConfigError: more boxes than there are proposals.
        """
        files = find_files(folder)
        return cls(load_network(files), files, options)

    @property
    def name(self) -> str:
        return f"Faster R-CNN, Visual Genome classes and attributes ({self.files.digest})"

    @property
    def width(self) -> int:
        return self.settings.width

    @property
    def classes(self) -> int:
        return self.settings.classes + 1

    @property
    def box_policy(self) -> str:
        count = f"{self.fewest}" if self.fewest == self.most else f"{self.fewest} to {self.most}"
        rule = {"detector": "the detector's own rule", "tsv": "bottom-up attention's rule"}
        return f"{count} boxes by {rule[self.options.rule]}"

    @property
    def record(self) -> dict[str, Any]:
        return {
            "digest": self.files.digest,
            "sha256": self.files.sha256,
            "boxes": [self.fewest, self.most],
            "rule": self.options.rule,
            "precision": self.options.precision,
        }

    @torch.inference_mode()
    def detect(self, picture: Image.Image) -> FoundRegions:
        """The regions of an RGB picture.

        Raises:
            DataError: nothing is proposed in it, or the weights are damaged.
        """
        scaled = scale_picture(picture, self.settings)
        image = scaled.pixels[None].to(self.options.device, PRECISIONS[self.options.precision])
        image = image.contiguous(memory_format=torch.channels_last)
        (outputs,) = self.network(image, [scaled.size], self.options.chunk)
        if self.options.rule == "tsv":
            scale = 1 / float(scaled.scales[0])
            chosen = select_as_tsv(outputs, scale, self.fewest, self.most)
        else:
            scales = scaled.scales.to(self.options.device)
            chosen = select_regions(
                outputs, self.settings, scaled.size, scales, self.fewest, self.most
            )
        return found_regions(outputs, chosen, picture.size)

    def doubts(self, found: FoundRegions, picture: Image.Image) -> dict[str, float]:
        """What is outside the range of features of photographs."""
        features = found.features
        numbers = (features.mean(), features.max(), (features == 0).float().mean())
        known = zip(PLAUSIBLE.items(), numbers, strict=True)
        return {
            f"{what} (usual: {low:g} to {high:g})": float(x)
            for (what, (low, high)), x in known
            if not low <= float(x) <= high
        }


def prepared(network: FasterRCNN, options: DetectorOptions) -> FasterRCNN:
    """The same network, made fast: folded norms, channels last, device, precision.

    Only convolutions are in low precision: boxes, their suppression, classes and attributes are
    computed in float32.
    """
    network.eval().requires_grad_(False)
    fold_norms(network)
    network.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    dtype = PRECISIONS[options.precision]
    for part in (network.backbone, network.proposal_generator.rpn_head, network.roi_heads.res5):
        part.to(dtype)
    return network


def found_regions(
    outputs: RegionOutputs, chosen: Selection, picture_size: tuple[int, int]
) -> FoundRegions:
    """The chosen rows, on the CPU; boxes are cut at the edges, beyond which rounding may be."""

    def shares(logits: Tensor) -> Tensor:
        return logits[chosen.kept].softmax(1).roll(1, 1).cpu()

    width, height = picture_size
    edges = torch.tensor([width, height, width, height], dtype=torch.float32)
    return FoundRegions(
        chosen.boxes.cpu().minimum(edges),
        outputs.features[chosen.kept].cpu(),
        chosen.object_ids.cpu(),
        chosen.object_conf.cpu(),
        chosen.attribute_ids.cpu(),
        chosen.attribute_conf.cpu(),
        shares(outputs.class_logits),
        shares(outputs.attribute_logits),
    )
