"""What the region detector costs: its fast form beside the plain one, on random weights.

Fast: norms folded into the convolutions, channels last. Plain: neither, the same network otherwise.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor, nn

from common.detector.faster_rcnn import PRECISIONS, DetectorOptions, prepared
from common.detector.network import CHUNK, FasterRCNN, RegionHeads
from common.detector.settings import DetectorSettings
from common.modules.resnet import Widths
from common.training.runtime import peak_memory
from common.training.timing import find_clock, interleaved

FORMS = ("fast", "plain", "bf16")
LOW = DetectorOptions(precision="bf16")
# The sizes of unc-nlp/frcnn-vg-finetuned.
RELEASED = DetectorSettings(
    means=(102.9801, 115.9465, 122.7717),
    deviations=(1.0, 1.0, 1.0),
    shortest=800,
    longest=1333,
    padding=0.0,
    depth=101,
    widths=Widths(stem=64, planes=64, outputs=256),
    stride_in_1x1=True,
    caffe_pool=True,
    hidden=512,
    sizes=(64.0, 128.0, 256.0, 512.0),
    ratios=(0.5, 1.0, 2.0),
    offset=0.0,
    candidates=6000,
    proposals=300,
    proposal_overlap=0.7,
    smallest=0.0,
    proposal_weights=(1.0, 1.0, 1.0, 1.0),
    box_weights=(10.0, 10.0, 5.0, 5.0),
    bins=14,
    halved=False,
    classes=1600,
    attributes=400,
    overlaps=(0.5, 0.6, 0.7),
    fewest=36,
    most=36,
)


class _PlainHeads(RegionHeads):
    """Regions laid out as everything else is in the plain form."""

    def pool(self, maps: Tensor, rois: Tensor) -> Tensor:
        return super().pool(maps, rois).contiguous()


def measure_detector(
    rounds: int, proposals: int = 300, size: tuple[int, int] = (800, 1067)
) -> dict[str, float]:
    """Time of all forms on one image, and the memory of the fast one in a process of its own.

    Args:
        rounds: how often each form runs.
        proposals: regions that go through the last stage.
        size: height and width of the scaled image.

    Returns:
        What `times_of_forms` gives, and `detector_peak_bytes`, where the system says it.
    """
    settings = replace(RELEASED, proposals=proposals)
    found = times_of_forms(rounds, settings, size)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        threads = torch.get_num_threads()
        peak = pool.submit(peak_of_detector, settings, size, threads).result()
    return found if peak is None else found | {"detector_peak_bytes": float(peak)}


def times_of_forms(
    rounds: int, settings: DetectorSettings, size: tuple[int, int]
) -> dict[str, float]:
    """CPU time of the fast form, the plain one, and the fast one in bfloat16.

    Returns:
        `detector_share`: median of fast / plain; `detector_seconds` of the fast form, and
        `detector_pictures_per_s`, in a second of CPU time; `detector_bf16_share`: bfloat16 / fast;
        `detector_bf16_deviation`: of the features of the same boxes, mean deviation in bfloat16
        as a share of their mean.
    """
    fast, plain, low = (random_network(settings, plain=form == "plain") for form in FORMS)
    prepared(fast, DetectorOptions())
    prepared(low, LOW)
    image = random_image(size)
    rows = image.contiguous(memory_format=torch.channels_last)
    images = {fast: rows, plain: image, low: rows.to(PRECISIONS[LOW.precision])}
    times = interleaved(
        [fast, plain, low],
        lambda network: lambda: _run(network, images[network], size),
        find_clock("cpu"),
        rounds,
    )
    seconds = {network: [each["seconds"] for each in found] for network, found in times.items()}

    def share(one: FasterRCNN, other: FasterRCNN) -> float:
        return median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))

    return {
        "detector_share": share(fast, plain),
        "detector_seconds": median(seconds[fast]),
        "detector_pictures_per_s": 1 / median(seconds[fast]),
        "detector_bf16_share": share(low, fast),
        "detector_bf16_deviation": _deviation(fast, low, images, size),
    }


@torch.inference_mode()
def _deviation(
    fast: FasterRCNN, low: FasterRCNN, images: Mapping[FasterRCNN, Tensor], size: tuple[int, int]
) -> float:
    maps = fast.backbone(images[fast])
    boxes = [fast.proposal_generator(maps, [size])[0].boxes[:CHUNK]]
    (precise,) = fast.roi_heads(maps, boxes, CHUNK)
    (rounded,) = low.roi_heads(low.backbone(images[low]), boxes, CHUNK)
    return float((rounded.features - precise.features).abs().mean() / precise.features.abs().mean())


def peak_of_detector(settings: DetectorSettings, size: tuple[int, int], threads: int) -> int | None:
    """Peak memory of this process, in bytes, after one image and nothing else."""
    torch.set_num_threads(threads)
    network = prepared(random_network(settings), DetectorOptions())
    _run(network, random_image(size).contiguous(memory_format=torch.channels_last), size)
    return peak_memory()["peak_rss_bytes"]


@torch.inference_mode()
def _run(network: FasterRCNN, image: Tensor, size: tuple[int, int]) -> None:
    network(image, [size])


def random_image(size: tuple[int, int]) -> Tensor:
    """(1, 3, H, W), about as normalised pixels are."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, *size, generator=generator) * 255 - 115


def random_network(settings: DetectorSettings, plain: bool = False) -> FasterRCNN:
    """Weights whose activations stay finite, and proposals near their anchors."""
    torch.manual_seed(0)
    network = FasterRCNN(settings)
    if plain:
        heads = _PlainHeads(settings)
        heads.load_state_dict(network.roi_heads.state_dict())
        network.roi_heads = heads
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.5)
    nn.init.normal_(network.proposal_generator.rpn_head.anchor_deltas.weight, std=1e-4)
    return network.eval().requires_grad_(False)
