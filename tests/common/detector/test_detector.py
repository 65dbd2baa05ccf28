"""The network: the original's numbers, its files, what it refuses, and that it is no other one."""

from __future__ import annotations

import ast
import collections
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from common.detector.faster_rcnn import DetectorOptions, FasterRCNNDetector, prepared
from common.detector.loading import find_files, load_network, read_weights, released_name
from common.detector.network import FasterRCNN
from common.detector.parity import absolute_tolerance
from common.detector.scaling import scale_picture, scale_pixels, scaled_size
from common.detector.selecting import select_as_tsv, select_regions, survivors
from common.detector.settings import parse_settings, read_settings
from common.errors import CheckpointError, ConfigError, DataError
from common.parity import main as parity
from tests.common.detector.files import (
    CASE,
    config,
    picture,
    random_network,
    released,
    write_detector,
)
from tests.common.modules.test_boxes import slow_overlap

RELEASE = {
    "input.min_size_test": 800,
    "input.max_size_test": 1333,
    "proposal_generator.hidden_channels": 512,
    "rpn.pre_nms_topk_test": 6000,
    "rpn.post_nms_topk_test": 300,
    "roi_heads.num_classes": 1600,
    "roi_box_head.num_attrs": 400,
    "resnets.depth": 101,
    "resnets.stem_out_channels": 64,
    "resnets.res2_out_channels": 256,
    "resnets.width_per_group": 64,
    "anchor_generator.sizes": [[64, 128, 256, 512]],
    "min_detections": 36,
    "max_detections": 36,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def network() -> FasterRCNN:
    return random_network(config())


def test_the_goldens_are_met_in_every_decision(capsys: pytest.CaptureFixture[str]) -> None:
    assert parity(["--backbone", "detector"]) == 0
    said = capsys.readouterr().out
    assert "all tensors agree" in said and said.count("  ok ") == len(
        load_file(CASE / "outputs.safetensors")
    )


def test_a_case_without_kind_is_run_and_one_wrong_index_is_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in CASE.iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    content = json.loads((CASE / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({k: v for k, v in content.items() if k != "kind"})
    )
    outputs = load_file(CASE / "outputs.safetensors")
    outputs["chelsea.v0.obj_ids"][0, 3] += 1
    outputs["chelsea.v0.boxes"][0, 5, 1] += 0.06
    save_file(outputs, tmp_path / "outputs.safetensors")
    assert parity(["--backbone", "detector", "--case", str(tmp_path)]) == 1
    failed = [x.split()[1] for x in capsys.readouterr().out.splitlines() if "FAIL" in x]
    assert failed == ["chelsea.v0.boxes", "chelsea.v0.obj_ids"]


def test_whole_numbers_have_no_tolerance() -> None:
    for name in ("batch.v1.kept.0", "a.butd36.keep", "a.v0.obj_ids", "a.v2.preds_per_image"):
        assert absolute_tolerance(name) == 0
    assert absolute_tolerance("batch.proposals.1") == 0.05


def test_names_and_shapes_are_those_of_the_release() -> None:
    with torch.device("meta"):
        network = FasterRCNN(parse_settings(config(RELEASE), "release"))
    ours = {
        released_name(name): (tuple(x.shape), str(x.dtype).removeprefix("torch."))
        for name, x in network.state_dict().items()
    }
    rows = [x.split("\t") for x in (CASE / "released_names.tsv").read_text().splitlines()]
    assert ours == {name: (ast.literal_eval(shape), dtype) for name, shape, dtype in rows}


def test_pictures_are_scaled_as_in_the_original() -> None:
    ops = load_file(CASE / "ops.safetensors")
    for old, new in zip(ops["resize.from"].tolist(), ops["resize.to"].tolist(), strict=True):
        assert list(scaled_size(*old, 800, 1333)) == new
    for i in range(4):
        shortest, longest = ops[f"resize.{i}.limits"].tolist()
        settings = parse_settings(
            config({"input.min_size_test": shortest, "input.max_size_test": longest}), "test"
        )
        found = scale_pixels(ops[f"resize.{i}.raw_rgb"], settings)
        torch.testing.assert_close(found.pixels[None], ops[f"resize.{i}.image"], rtol=0, atol=1e-4)
        assert torch.equal(found.scales[None], ops[f"resize.{i}.scales_yx"])


# Files


def test_a_folder_is_loaded_and_says_what_it_is(folder: Path, network: FasterRCNN) -> None:
    detector = FasterRCNNDetector.open(folder, DetectorOptions())
    again = FasterRCNNDetector.open(folder, DetectorOptions(10, 20, "tsv"))
    assert detector.name == again.name and detector.files.digest in detector.name
    assert detector.box_policy != again.box_policy and "10 to 20" in again.box_policy
    assert detector.record["sha256"].keys() == {"config.yaml", "pytorch_model.bin"}
    loaded = load_network(find_files(folder)).state_dict()
    for name, x in network.state_dict().items():
        assert torch.equal(x, loaded[name]), name


def test_other_weights_and_another_config_have_another_digest(folder: Path, tmp_path: Path) -> None:
    digest = find_files(folder).digest
    other = write_detector(tmp_path / "weights", seed=1)
    assert find_files(other).digest != digest
    same = write_detector(tmp_path / "config", {"rpn.nms_thresh": 0.6})
    assert find_files(same).digest != digest
    shutil.copytree(folder, tmp_path / "copy")
    assert find_files(tmp_path / "copy").digest == digest


def test_counters_may_be_missing_or_vectors(folder: Path, tmp_path: Path) -> None:
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    counters = [name for name in weights if name.endswith("num_batches_tracked")]
    shutil.copyfile(folder / "config.yaml", tmp_path / "config.yaml")
    for name in counters[::2]:
        weights[name] = weights[name].reshape(1)
    for name in counters[1::2]:
        del weights[name]
    save_file(weights, tmp_path / "model.safetensors")
    assert load_network(find_files(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("backbone.res3.1.conv2.norm.weight"), "backbone.res3.1.conv2.norm.weight"),
        (lambda w: w.update({"backbone.res9": torch.zeros(1)}), "unexpected.*backbone.res9"),
        (
            lambda w: w.update({"roi_heads.box_predictor.cls_score.bias": torch.zeros(7)}),
            r"cls_score.bias \[7\] instead of \[41\]",
        ),
        (lambda w: w["roi_heads.box_predictor.cls_score.bias"].fill_(float("nan")), "holds nan"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_their_own_name(
    tmp_path: Path, change, said: str
) -> None:
    weights = released(random_network(config()))
    change(weights)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config()))
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=said):
        load_network(find_files(tmp_path))


def test_missing_files_are_named_with_where_they_come_from(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config.yaml.*unc-nlp/frcnn-vg-finetuned"):
        shutil.copyfile(folder / "pytorch_model.bin", tmp_path / "pytorch_model.bin")
        find_files(tmp_path)
    shutil.copyfile(folder / "config.yaml", tmp_path / "config.yaml")
    shutil.copyfile(folder / "pytorch_model.bin", tmp_path / "old.pkl")
    with pytest.raises(CheckpointError, match="pytorch_model.bin and old.pkl could be"):
        find_files(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    (tmp_path / "old.pkl").unlink()
    with pytest.raises(CheckpointError, match="no pytorch_model.bin"):
        find_files(tmp_path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_older_pickles_of_arrays_are_read(
    folder: Path, tmp_path: Path, protocol: int, network: FasterRCNN
) -> None:
    """Without counters and anchors, with other things beside the weights."""
    arrays = collections.OrderedDict(
        (name, x.numpy())
        for name, x in released(network).items()
        if not name.endswith(("num_batches_tracked", "cell_anchors.0"))
    )
    arrays["pixel_mean"] = np.zeros(3)
    content = {"model": arrays, "__author__": "someone", "matching_heuristics": True}
    shutil.copyfile(folder / "config.yaml", tmp_path / "config.yaml")
    (tmp_path / "faster_rcnn_from_caffe_attr.pkl").write_bytes(pickle.dumps(content, protocol))
    loaded = load_network(find_files(tmp_path)).state_dict()
    for name, x in network.state_dict().items():
        assert torch.equal(x, loaded[name]), name


class Evil:
    def __reduce__(self) -> tuple[object, tuple[()]]:
        return os.abort, ()


@pytest.mark.parametrize("value", [Evil(), {"model": {"a": Evil()}}, {"model": {"a": [1]}}, [1]])
def test_a_pickle_of_anything_else_is_refused_and_nothing_is_run(
    tmp_path: Path, value: object
) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises((DataError, CheckpointError), match="w.pkl"):
        read_weights(path, parse_settings(config(), "test"))


def test_anchors_are_those_of_the_file(folder: Path, tmp_path: Path) -> None:
    """In another order, as caffe has them: the channels of the proposals are in that order."""
    weights = released(random_network(config()))
    name = "proposal_generator.anchor_generator.cell_anchors.0"
    weights[name] = weights[name].flip(0) + 0.25
    shutil.copyfile(folder / "config.yaml", tmp_path / "config.yaml")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    found = load_network(find_files(tmp_path)).proposal_generator.anchor_generator(2, 3)
    cells = [[x, y, x, y] for y in (0.0, 16.0) for x in (0.0, 16.0, 32.0)]
    expected = torch.tensor(cells)[:, None] + weights[name]
    assert torch.equal(found, expected.reshape(-1, 4))


# Config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resnets.norm": "GN"}, "resnets.norm is 'GN': this detector knows BN"),
        ({"resnets.norm": ""}, "resnets.norm is ''"),
        ({"roi_box_head.attr": False}, "roi_box_head.attr is False"),
        ({"roi_box_head.cls_agnostic_bbox_reg": True}, "cls_agnostic_bbox_reg is True"),
        ({"model.load_proposals": True}, "load_proposals is True"),
        ({"input.format": "RGB"}, "input.format is 'RGB'"),
        ({"resnets.depth": 34}, "resnets.depth is 34"),
        ({"resnets.out_features": ["res5"]}, "out_features is"),
        ({"rpn.in_features": ["res3", "res4"]}, "rpn.in_features"),
        ({"size_divisibility": 32}, "size_divisibility is 32"),
        ({"max_detections": 3}, "max_detections is 3"),
        ({"anchor_generator.sizes": [[32], [64]]}, "anchor_generator.sizes"),
        ({"model.pixel_std": [1.0, 1.0, 0.0]}, "pixel_std"),
        ({"rpn.bbox_reg_weights": [1.0, 1.0]}, "bbox_reg_weights"),
        ({"rpn.post_nms_topk_test": 0}, "rpn.post_nms_topk_test is 0"),
        ({"proposal_generator.hidden_channels": 0}, "hidden_channels is 0"),
        ({"roi_heads.num_classes": 10**9}, "expected 1 to 1,000,000"),
        ({"model.pixel_mean": [float("nan"), 1.0, 1.0]}, "expected finite numbers"),
        ({"anchor_generator.aspect_ratios": [[0.0]]}, "above 0"),
        ({"roi_heads.nms_thresh_test": []}, "need values"),
        ({"roi_heads.num_classes": None}, "roi_heads.num_classes is None"),
        ({"roi_heads.num_classes": "many"}, "roi_heads.num_classes is 'many'"),
    ],
)
def test_what_the_detector_cannot_do_is_refused_by_key_and_value(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config(changes)))
    with pytest.raises(DataError) as error:
        read_settings(path)
    assert str(path) in str(error.value) and said in str(error.value)


def test_keys_may_be_upper_case_but_not_both(tmp_path: Path) -> None:
    def upper(value: object) -> object:
        if isinstance(value, dict):
            return {k.upper(): upper(v) for k, v in value.items()}
        return value

    content = config()
    assert parse_settings(upper(content), "a") == parse_settings(content, "b")
    with pytest.raises(DataError, match="lower and in upper case"):
        parse_settings({**content, "RPN": content["rpn"]}, "c")


def test_a_missing_key_and_a_missing_file_are_named(tmp_path: Path) -> None:
    content = config()
    del content["rpn"]["nms_thresh"]
    with pytest.raises(DataError, match="rpn.nms_thresh: field required"):
        parse_settings(content, "a")
    with pytest.raises(DataError, match=r"no such file; config.yaml of unc-nlp"):
        read_settings(tmp_path / "config.yaml")


def test_every_value_of_the_config_is_used() -> None:
    """Each of these changes what is found, or how the picture is read."""
    base = parse_settings(config(), "a")
    changed = {
        "model.pixel_mean": [1.0, 2.0, 3.0],
        "model.pixel_std": [2.0, 2.0, 2.0],
        "model.max_pool": False,
        "input.min_size_test": 70,
        "input.max_size_test": 100,
        "pad_value": 1.0,
        "proposal_generator.hidden_channels": -1,
        "proposal_generator.min_size": 3.0,
        "anchor_generator.offset": 0.5,
        "rpn.pre_nms_topk_test": 100,
        "rpn.post_nms_topk_test": 20,
        "rpn.nms_thresh": 0.6,
        "rpn.bbox_reg_weights": [2.0, 2.0, 2.0, 2.0],
        "roi_heads.nms_thresh_test": 0.4,
        "roi_box_head.bbox_reg_weights": [1.0, 1.0, 1.0, 1.0],
        "roi_box_head.pooler_resolution": 7,
        "roi_box_head.res5halve": True,
        "resnets.stride_in_1x1": False,
        "resnets.num_groups": 2,
    }
    for key, value in changed.items():
        assert parse_settings(config({key: value}), key) != base, key
    assert parse_settings(config({"roi_heads.nms_thresh_test": 0.4}), "a").overlaps == (0.4,)
    hidden = parse_settings(config({"proposal_generator.hidden_channels": -1}), "a").hidden
    assert hidden == base.channels


def test_the_weights_of_the_proposals_divide_their_offsets(network: FasterRCNN) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 12, 2, 3, generator=generator)
    deltas = torch.randn(1, 48, 2, 3, generator=generator) * 0.3
    weighted = random_network(config({"rpn.bbox_reg_weights": [2.0, 4.0, 8.0, 16.0]}))
    factors = torch.tensor([2.0, 4.0, 8.0, 16.0]).repeat(12)[:, None, None]
    expected = network.proposal_generator.choose(logits, deltas, [(60, 80)])[0]
    found = weighted.proposal_generator.choose(logits, deltas * factors, [(60, 80)])[0]
    torch.testing.assert_close(found.boxes, expected.boxes)
    assert len(expected.boxes) > 5


# What is found


@torch.inference_mode()
def test_several_pictures_of_one_size_are_found_as_each_by_itself(network: FasterRCNN) -> None:
    scaled = [scale_picture(picture(seed), network.settings) for seed in range(3)]
    size = scaled[0].size
    together = network(torch.stack([each.pixels for each in scaled]), [size] * 3)
    for each, found in zip(scaled, together, strict=True):
        (alone,) = network(each.pixels[None], [size])
        torch.testing.assert_close(found.proposals, alone.proposals, rtol=0, atol=1e-3)
        torch.testing.assert_close(found.features, alone.features, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.class_logits, alone.class_logits, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_chunks_folded_norms_and_layout_change_nothing(network: FasterRCNN) -> None:
    scaled = scale_picture(picture(1), network.settings)
    image = scaled.pixels[None]
    (expected,) = network(image, [scaled.size], 1000)
    fast = prepared(random_network(config()), DetectorOptions())
    for chunk in (1, 5, 1000):
        (found,) = fast(image, [scaled.size], chunk)
        torch.testing.assert_close(found.proposals, expected.proposals, rtol=0, atol=1e-3)
        torch.testing.assert_close(found.features, expected.features, rtol=1e-4, atol=1e-4)
        assert torch.equal(found.class_logits.argmax(1), expected.class_logits.argmax(1))


@torch.inference_mode()
def test_low_precision_gives_other_features_by_percents(network: FasterRCNN) -> None:
    scaled = scale_picture(picture(1), network.settings)
    (expected,) = network(scaled.pixels[None], [scaled.size])
    low = prepared(random_network(config()), DetectorOptions(precision="bf16"))
    assert low.backbone.conv1.weight.dtype == torch.bfloat16
    maps = low.backbone(scaled.pixels[None].bfloat16())
    (found,) = low.roi_heads(maps, [expected.proposals], 60)
    off = (found.features - expected.features).abs().mean() / expected.features.abs().mean()
    assert 1e-4 < off < 0.1
    assert found.class_logits.dtype == torch.float32


@torch.inference_mode()
def test_too_few_boxes_are_what_the_last_threshold_leaves(network: FasterRCNN) -> None:
    """The original crashes, or gives the boxes of the picture before."""
    scaled = scale_picture(picture(2), network.settings)
    (outputs,) = network(scaled.pixels[None], [scaled.size])
    settings = network.settings
    found = select_regions(outputs, settings, scaled.size, scaled.scales, 1000, 1000)
    last = parse_settings(config({"roi_heads.nms_thresh_test": settings.overlaps[-1]}), "a")
    expected = select_regions(outputs, last, scaled.size, scaled.scales, 1, 1000)
    assert torch.equal(found.kept, expected.kept) and 1 < len(found.kept) < 1000


@torch.inference_mode()
def test_regions_are_those_of_a_plain_loop(network: FasterRCNN) -> None:
    """Selection written once more, in double precision, region by region."""
    scaled = scale_picture(picture(3, 70, 50), network.settings)
    (outputs,) = network(scaled.pixels[None], [scaled.size])
    found = select_regions(outputs, network.settings, scaled.size, scaled.scales, 8, 8)
    height, width = scaled.size
    rows = []
    for i, box in enumerate(outputs.proposals.double().tolist()):
        shares = outputs.class_logits[i].double().softmax(0)
        kind = int(shares[:-1].argmax())
        dx, dy, dw, dh = (
            outputs.deltas[i, kind].double() / torch.tensor([10.0, 10, 5, 5])
        ).tolist()
        w, h = box[2] - box[0], box[3] - box[1]
        x, y = box[0] + w / 2 + dx * w, box[1] + h / 2 + dy * h
        w, h = w * np.exp(min(dw, np.log(62.5))), h * np.exp(min(dh, np.log(62.5)))
        corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        limits = (width, height, width, height)
        rows.append(
            ([min(max(c, 0), m) for c, m in zip(corners, limits, strict=True)], kind, shares[kind])
        )
    order = sorted(range(len(rows)), key=lambda i: -float(rows[i][2]))
    for threshold in (0.5, 0.6, 0.7):
        kept: list[int] = []
        for i in order:
            if not any(slow_overlap(rows[i][0], rows[k][0], 0) > threshold for k in kept):
                kept.append(i)
        if len(kept[:8]) >= 8:
            break
    assert found.kept.tolist() == kept[:8]
    assert found.object_ids.tolist() == [rows[i][1] for i in kept[:8]]
    scale = torch.tensor([70 / width, 50 / height] * 2)
    expected = torch.tensor([rows[i][0] for i in kept[:8]]).float() * scale
    torch.testing.assert_close(found.boxes, expected, rtol=0, atol=1e-3)


def test_the_rule_of_the_tsvs_suppresses_within_each_class() -> None:
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(30, 2, 2, generator=generator) * 60
    boxes = corners.sort(1).values.flatten(1)
    shares = torch.randn(30, 9, generator=generator).mul(2).softmax(1)
    found = survivors(boxes, shares)
    for k in range(9):
        kept: list[int] = []
        for i in sorted(range(30), key=lambda i: -float(shares[i, k])):
            overlaps = [slow_overlap(boxes[i].tolist(), boxes[j].tolist(), 1) for j in kept]
            if not any(value >= 0.3 for value in overlaps):
                kept.append(i)
        assert sorted(kept) == found[:, k].nonzero()[:, 0].tolist()
    assert 30 < int(found.sum()) < 250


@torch.inference_mode()
def test_the_rule_of_the_tsvs_keeps_the_order_of_proposals_between_its_limits(
    network: FasterRCNN,
) -> None:
    scaled = scale_picture(picture(4), network.settings)
    (outputs,) = network(scaled.pixels[None], [scaled.size])
    scale = 1 / float(scaled.scales[0])
    free = select_as_tsv(outputs, scale, 1, 1000)
    assert free.best_conf is not None
    sure = (free.best_conf >= 0.2).nonzero()[:, 0]
    assert torch.equal(free.kept, sure) and 1 < len(sure) < len(outputs.proposals)
    few = select_as_tsv(outputs, scale, len(sure) + 1, 1000)
    assert len(few.kept) == len(sure) + 1
    assert free.best_conf[few.kept].diff().le(0).all()
    most = select_as_tsv(outputs, scale, 1, len(sure) - 1)
    assert len(most.kept) == len(sure) - 1
    torch.testing.assert_close(free.boxes, outputs.proposals[free.kept] / scale)


def test_no_proposal_at_all_is_an_error_that_says_so() -> None:
    network = random_network(config({"proposal_generator.min_size": 500.0}))
    scaled = scale_picture(picture(1), network.settings)
    with pytest.raises(DataError, match="no region is proposed in the image of 85 x 64"):
        network(scaled.pixels[None], [scaled.size])


def test_damaged_numbers_are_an_error_not_features() -> None:
    network = random_network(config())
    network.proposal_generator.rpn_head.conv.bias.fill_(float("inf"))
    scaled = scale_picture(picture(1), network.settings)
    with pytest.raises(DataError, match="not finite"):
        network(scaled.pixels[None], [scaled.size])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "best"}, "rule 'best'"),
        ({"precision": "int8"}, "precision 'int8'"),
        ({"chunk": 0}, "0 regions at a time"),
        ({"fewest": 5}, "belong together"),
        ({"fewest": 0, "most": 5}, "0 to 5 boxes"),
        ({"fewest": 9, "most": 5}, "9 to 5 boxes"),
        ({"device": "quantum"}, "device 'quantum'"),
        ({"precision": "fp16"}, "fp16 is for a GPU"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DetectorOptions(**options)


def test_more_boxes_than_proposals_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="25 boxes.*24 proposals"):
        FasterRCNNDetector.open(folder, DetectorOptions(25, 30))


def test_features_unlike_those_of_photographs_raise_doubts(folder: Path) -> None:
    detector = FasterRCNNDetector.open(folder, DetectorOptions())
    shown = picture(0)
    found = detector.detect(shown)
    usual = torch.rand(6, found.features.shape[1]).mul(1.6).sub(0.5).clamp(min=0)
    usual[0, 0] = 30
    found.features = usual
    assert detector.doubts(found, shown) == {}
    for wrong in (usual * 10, usual / 10, usual + 0.01):
        found.features = wrong
        assert detector.doubts(found, shown)


@pytest.mark.slow
def test_the_released_sizes_run_once(tmp_path: Path, record_property) -> None:
    """Random weights in the released shapes, a photograph of 800 x 1067 pixels: 36 regions."""
    import matplotlib.cbook
    from PIL import Image

    write_detector(tmp_path, RELEASE)
    detector = FasterRCNNDetector.open(tmp_path, DetectorOptions())
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        found = detector.detect(Image.open(file).convert("RGB"))
    assert found.features.shape == (36, 2048) and found.boxes.shape == (36, 4)
    assert found.class_probabilities is not None
    assert found.class_probabilities.shape == (36, 1601)
    assert found.attribute_probabilities is not None
    assert found.attribute_probabilities.shape == (36, 401)
    assert int(found.object_ids.max()) < 1600 and int(found.attribute_ids.max()) < 400
