"""Suppression, overlap, offsets and RoI pooling: the numbers of the originals, and plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from common.modules.boxes import PIXEL, TILE, apply_deltas, clip, overlap, suppress
from common.modules.roi_pool import roi_pool, round_half_away


@pytest.fixture(scope="module")
def ops(goldens: Path) -> dict[str, Tensor]:
    return load_file(goldens / "detector" / "ops.safetensors")


def slow_overlap(a: list[float], b: list[float], end: float) -> float:
    """By the definition, in double precision."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + end, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + end, 0)
    areas = [(x[2] - x[0] + end) * (x[3] - x[1] + end) for x in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else math.nan


def slow_suppress(
    boxes: list[list[float]], scores: list[float], threshold: float, end: float
) -> list[int]:
    left = sorted(range(len(boxes)), key=lambda i: -scores[i])
    kept: list[int] = []
    for i in left:
        if not any(slow_overlap(boxes[i], boxes[k], end) > threshold for k in kept):
            kept.append(i)
    return kept


def some_boxes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * 100
    # Few different scores: ties are as frequent as in small pictures.
    scores = torch.randint(0, 40, (count,), generator=generator).float()
    return corners.sort(1).values.flatten(1), scores


@pytest.mark.parametrize("end", [0.0, PIXEL])
def test_overlap_is_that_of_a_loop_in_double_precision(end: float) -> None:
    ours, theirs = some_boxes(20, 0)[0], some_boxes(15, 1)[0]
    theirs[3] = torch.tensor([40.0, 40.0, 40.0, 40.0])
    expected = [[slow_overlap(a, b, end) for b in theirs.tolist()] for a in ours.tolist()]
    torch.testing.assert_close(
        overlap(ours, theirs, end).double(), torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.parametrize("name", ["nms", "nms_ties"])
def test_suppression_keeps_what_the_original_keeps(ops: dict[str, Tensor], name: str) -> None:
    cases = [key for key in ops if key.startswith(f"{name}.keep_")]
    assert len(cases) > 1
    for key in cases:
        threshold = float(key.rsplit("_", 1)[1])
        found = suppress(ops[f"{name}.boxes"], ops[f"{name}.scores"], threshold)
        assert torch.equal(found, ops[key]), key


@pytest.mark.parametrize("end", [0.0, PIXEL])
def test_suppression_in_tiles_is_that_of_a_loop(
    monkeypatch: pytest.MonkeyPatch, end: float
) -> None:
    monkeypatch.setattr("common.modules.boxes.TILE", 16)
    boxes, scores = some_boxes(150, 3)
    expected = slow_suppress(boxes.double().tolist(), scores.tolist(), 0.3, end)
    assert 20 < len(expected) < 140
    assert suppress(boxes, scores, 0.3, end=end).tolist() == expected
    for limit in (0, 1, 15, 16, 17, len(expected), 1000):
        found = suppress(boxes, scores, 0.3, limit, end)
        assert found.tolist() == expected[:limit]


def test_suppression_looks_no_further_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "common.modules.boxes.overlap", lambda a, b, end: seen.append(len(a)) or overlap(a, b, end)
    )
    boxes = torch.arange(3.0 * TILE)[:, None] * 10 + torch.tensor([0.0, 0.0, 5.0, 5.0])
    assert len(suppress(boxes, -boxes[:, 0], 0.5, 30)) == 30
    assert sum(seen) == 2 * TILE, "one tile, with what was kept and with itself"


def test_an_overlap_that_is_the_threshold_drops_a_box_only_where_asked() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])
    scores = torch.tensor([2.0, 1])
    assert suppress(boxes, scores, 0.5).tolist() == [0, 1]
    assert suppress(boxes, scores, 0.5, equal=True).tolist() == [0]
    # 0.6 in float32 is above 0.6 in double precision, which is what counts.
    third = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6]])
    assert suppress(third, scores, 0.6).tolist() == [0]


def test_offsets_move_and_scale_boxes_as_in_the_original(ops: dict[str, Tensor]) -> None:
    proposals, deltas = ops["boxes.proposals"], ops["boxes.deltas"].unflatten(1, (-1, 4))
    found = apply_deltas(deltas, proposals, (10, 10, 5, 5))
    torch.testing.assert_close(found.flatten(1), ops["boxes.out"], rtol=1e-6, atol=1e-4)
    assert (deltas[..., 2:] / 5 > math.log(1000 / 16)).any(), "the limit is reached"


def test_each_weight_divides_its_own_offset() -> None:
    box = torch.tensor([[10.0, 20, 30, 60]])
    found = apply_deltas(torch.tensor([[[1.0, 2, 3, 4]]]), box, (2, 4, 6, 8))[0, 0].double()
    x, y = 20 + 0.5 * 20, 40 + 0.5 * 40
    w, h = math.exp(0.5) * 20, math.exp(0.5) * 40
    expected = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_boxes_are_cut_at_width_and_height_themselves() -> None:
    boxes = torch.tensor([[-5.0, 3, 200, 80]])
    assert clip(boxes, height=60, width=100).tolist() == [[0, 3, 100, 60]]


@pytest.mark.parametrize("bins", [14, 7])
def test_pooled_regions_are_those_of_the_original_bit_by_bit(
    ops: dict[str, Tensor], bins: int
) -> None:
    found = roi_pool(ops["roi_pool.features"], ops["roi_pool.rois"], bins, 1 / 16)
    assert torch.equal(found, ops[f"roi_pool.out{bins}"])


def slow_roi_pool(features: np.ndarray, roi: list[float], bins: int, scale: float) -> np.ndarray:
    """By the definition; only the edges of bins are in float32, as they are everywhere."""
    _, channels, height, width = features.shape
    whole = [math.copysign(math.floor(abs(v * scale) + 0.5), v) for v in roi[1:]]
    x1, y1, x2, y2 = (int(v) for v in whole)
    found = np.zeros((channels, bins, bins))

    def edges(first: int, last: int, size: int, i: int) -> range:
        side = np.float32(max(last - first + 1, 1)) / np.float32(bins)
        low = math.floor(np.float32(i) * side) + first
        high = math.ceil(np.float32(i + 1) * side) + first
        return range(min(max(low, 0), size), min(max(high, 0), size))

    for i in range(bins):
        for j in range(bins):
            for y in edges(y1, y2, height, i):
                for x in edges(x1, x2, width, j):
                    here = features[int(roi[0]), :, y, x]
                    first = y == edges(y1, y2, height, i)[0] and x == edges(x1, x2, width, j)[0]
                    found[:, i, j] = here if first else np.maximum(found[:, i, j], here)
    return found


def test_pooled_regions_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(2, 3, 13, 19, generator=generator)
    rois = torch.rand(25, 5, generator=generator) * 400 - 50
    rois[:, 0] = torch.arange(25) % 2
    rois[0, 1:] = torch.tensor([8.0, 24.0, 40.0, 56.0])  # halves after scaling
    for bins in (3, 14):
        found = roi_pool(features, rois, bins, 1 / 16)
        expected = [slow_roi_pool(features.numpy(), r, bins, 1 / 16) for r in rois.tolist()]
        assert np.array_equal(found.numpy(), np.stack(expected).astype(np.float32))


def test_no_region_at_all_is_pooled_to_none() -> None:
    assert roi_pool(torch.rand(1, 4, 5, 5), torch.zeros(0, 5), 7, 1 / 16).shape == (0, 4, 7, 7)


def test_halves_are_rounded_away_from_zero() -> None:
    values = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, 8388609.0, -0.2])
    assert round_half_away(values).tolist() == [1, 2, 3, -1, -2, 0, 8388609, 0]
