"""Texts and regions of pairs: one or two sets of features, second texts."""

from __future__ import annotations

import pytest
import torch

from common.data.tokenizer import Tokenizer
from common.features.store import RegionBatch
from tests.vilbert.other_tasks import words
from vilbert.inputs import Limits
from vilbert.pair_inputs import PairInputs, with_second
from vilbert.samples import Pair

WIDTH = 3


def batch(counts: list[int], start: float = 0.0) -> RegionBatch:
    """Features that tell image and place."""
    longest = max(counts)
    features = torch.zeros(len(counts), longest, WIDTH)
    boxes = torch.zeros(len(counts), longest, 4)
    for image, count in enumerate(counts):
        for place in range(count):
            features[image, place] = start + 10 * image + place + 1
            boxes[image, place] = torch.tensor([place, place, place + 2.0, place + 1.0]) + start
    return RegionBatch(
        [str(n) for n in range(len(counts))],
        features,
        boxes,
        torch.arange(longest) < torch.tensor(counts)[:, None],
        torch.tensor([[800.0, 600.0]] * len(counts)),
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("words")
    (folder / "vocab.txt").write_text("\n".join(words()) + "\n")
    return Tokenizer(folder)


class Store:
    """Reads the first images of a batch."""

    def __init__(self, found: RegionBatch) -> None:
        self.found = found

    def read(self, image_ids: list[str], half: bool = False) -> RegionBatch:
        assert image_ids == list(dict.fromkeys(image_ids)), "an image is read twice"
        rows = torch.tensor([int(name) for name in image_ids])
        f = self.found
        return RegionBatch(image_ids, f.features[rows], f.boxes[rows], f.mask[rows], f.sizes[rows])


def test_annotated_regions_stand_behind_and_never_give_way():
    first, second = batch([5, 2]), batch([2, 3], start=100.0)
    found = with_second(first, second, most=6)
    assert found.mask.sum(1).tolist() == [5, 5]
    assert found.features[0, :, 0].tolist() == [1, 2, 3, 101, 102]
    assert found.features[1, :, 0].tolist() == [11, 12, 111, 112, 113]
    assert torch.equal(found.boxes[0, 3], second.boxes[0, 0])
    crowded = with_second(first, batch([9, 1], start=100.0), most=4)
    assert crowded.features[0, :, 0].tolist() == [101, 102, 103], "the image itself has a place"
    assert crowded.features[1, :, 0].tolist() == [11, 12, 111]


def test_the_image_as_a_whole_is_that_of_both_counted_with_themselves():
    """As in the original: means weighted with the number of regions and one."""
    first, second = batch([5]), batch([2], start=100.0)
    found = with_second(first, second, most=6).image_features
    means = first.features.sum(1) / 5, second.features.sum(1) / 2
    torch.testing.assert_close(found, (means[0] * 6 + means[1] * 3) / 9)


def test_pairs_share_the_images_that_are_read(tokenizer):
    inputs = PairInputs(tokenizer, Limits(12, 5), Store(batch([3, 4, 2])))
    pairs = [Pair("a ball", "1"), Pair("a box of it", "0"), Pair("it", "1")]
    found, shown = inputs(pairs)
    assert found["features"].shape == (3, 5, WIDTH)
    torch.testing.assert_close(found["features"][0], found["features"][2])
    assert found["image_attention_mask"].tolist() == [[1] * 5, [1] * 4 + [0], [1] * 5]
    torch.testing.assert_close(found["features"][1, 0], batch([3]).features[0].mean(0))
    assert shown.boxes[0, 0].tolist() == [0, 0, 800, 600]
    assert "token_type_ids" not in found


def test_a_second_text_is_segment_one_and_the_longer_text_is_cut(tokenizer):
    inputs = PairInputs(tokenizer, Limits(9, 5), Store(batch([3])))
    pairs = [
        Pair("what is left of it", "0", "a ball"),
        Pair("it", "0", "the ball the ball the ball"),
        Pair("it", "0", "a box"),
    ]
    found = inputs.texts(pairs)
    ids, segments = found["input_ids"], found["token_type_ids"]
    sep = tokenizer.sep_id
    assert ids.shape == (3, 9)
    assert (ids == sep).sum(1).tolist() == [2, 2, 2], "no [SEP] is lost"
    assert segments[0].tolist() == [0] * 6 + [1] * 3, "four of five words and a second text"
    assert segments[1].tolist() == [0] * 3 + [1] * 6
    lengths = found["attention_mask"].sum(1)
    assert lengths.tolist() == [9, 9, 6] and segments[2, 6:].tolist() == [0, 0, 0]


def test_second_features_are_shown_where_they_are_wanted(tokenizer):
    store, second = Store(batch([3])), Store(batch([2], start=100.0))
    inputs = PairInputs(tokenizer, Limits(9, 8), store, second)
    pairs = [Pair("it", "0")]
    assert inputs(pairs)[1].mask.sum() == 4 and inputs(pairs, second=True)[1].mask.sum() == 6
