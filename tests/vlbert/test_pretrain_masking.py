"""Masked words and regions of VL-BERT's pretraining: shares, whole words, what they depend on."""

from __future__ import annotations

import pytest
import torch

from common.data.tokenizer import Tokenizer, small_vocabulary
from common.tasks.masking import Draws
from vlbert.pretraining_masking import (
    WORDS,
    Pieces,
    Rates,
    assemble,
    cut_lengths,
    mask_regions,
    mask_words,
    word_starts,
)

SAMPLES = 4000
TEXT = ["a", "dog", "##gy", "##gy", "runs", "home"]
REPLY = ["red"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bert")
    words = [*small_vocabulary(["a dog runs home red"]), "##gy"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def masked(tokenizer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Original ids (T,), masked ids and labels (N, T)."""
    text = assemble(tokenizer, TEXT, REPLY)
    found = mask_words(
        [text] * SAMPLES, tokenizer, Draws(5, 0, range(SAMPLES)), WORDS, Rates(0.15, 0.6)
    )
    return torch.tensor(text.ids), *found


def share(x: torch.Tensor) -> float:
    return float(x.double().mean())


def test_words_are_masked_as_a_whole_and_special_tokens_never(tokenizer, masked):
    original, ids, labels = masked
    chosen = labels != -1
    assert torch.equal(chosen[:, 2], chosen[:, 3]) and torch.equal(chosen[:, 2], chosen[:, 4])
    blanked = ids == tokenizer.mask_id
    assert torch.equal(blanked[:, 2], blanked[:, 4])
    assert torch.equal(labels[chosen], original.expand_as(labels)[chosen])
    assert torch.equal(ids[~chosen], original.expand_as(ids)[~chosen])
    special = [0, 7, 9]
    assert not chosen[:, special].any()
    # Different words of a text are independent.
    both = share(chosen[:, 1] & chosen[:, 2])
    assert both == pytest.approx(0.15**2, abs=0.01)


def test_shares_of_masked_replaced_and_kept_words(tokenizer, masked):
    original, ids, labels = masked
    chosen = labels != -1
    for place, rate in ((1, 0.15), (2, 0.15), (5, 0.15), (8, 0.6)):  # the last one is the reply
        assert share(chosen[:, place]) == pytest.approx(rate, abs=4 * (rate / SAMPLES) ** 0.5)
    blanked = share((ids == tokenizer.mask_id)[chosen])
    kept = share((ids == original)[chosen])
    assert blanked == pytest.approx(0.8, abs=0.03)
    assert kept == pytest.approx(0.1 + 0.1 / len(tokenizer), abs=0.02)
    replaced = ids[chosen & (ids != tokenizer.mask_id) & (ids != original)]
    assert replaced.min() > 0  # never padding, which the network leaves out
    assert len(replaced.unique()) > len(tokenizer) / 2


def test_what_is_drawn_depends_on_seed_epoch_and_sample_alone(tokenizer):
    text = assemble(tokenizer, TEXT * 3, None)

    def draw(seed: int, epoch: int, samples: list[int]) -> torch.Tensor:
        return mask_words(
            [text] * len(samples), tokenizer, Draws(seed, epoch, samples), WORDS, Rates()
        )[0]

    whole = draw(1, 2, [10, 11, 12, 13])
    assert torch.equal(torch.cat([draw(1, 2, [10]), draw(1, 2, [11, 12]), draw(1, 2, [13])]), whole)
    for other in (
        draw(2, 2, [10, 11, 12, 13]),
        draw(1, 3, [10, 11, 12, 13]),
        draw(1, 2, [20, 21, 22, 23]),
    ):
        assert not torch.equal(other, whole)


def test_regions_are_chosen_and_hidden_in_the_published_shares():
    present = torch.arange(10) < torch.tensor([10, 4])[:, None]
    present = present.repeat(SAMPLES // 4, 1)
    chosen, hidden = mask_regions(present, Draws(0, 0, range(len(present))))
    assert not (chosen & ~present).any() and not (hidden & ~chosen).any()
    assert share(chosen[present]) == pytest.approx(0.15, abs=0.015)
    assert share(hidden[chosen]) == pytest.approx(0.9, abs=0.02)
    again = mask_regions(present[2:3], Draws(0, 0, [2]))
    assert torch.equal(again[0], chosen[2:3]) and torch.equal(again[1], hidden[2:3])


@pytest.mark.parametrize(
    ("tokens", "boxes", "expected"),
    [
        (20, 40, (20, 40)),
        (24, 40, (24, 40)),
        (20, 101, (20, 44)),
        (60, 20, (44, 20)),
        (60, 60, (32, 32)),
        (40, 40, (32, 32)),
        (64, 1, (63, 1)),
        (2, 101, (2, 62)),
    ],
)
def test_the_longer_of_text_and_boxes_loses_its_end(tokens, boxes, expected):
    assert cut_lengths(tokens, boxes) == expected


def test_a_cut_text_still_ends_with_sep(tokenizer):
    text = assemble(tokenizer, TEXT, REPLY)
    names = tokenizer.text().splitlines()
    assert [names[i] for i in text.cut(5).ids] == ["[CLS]", "a", "dog", "##gy", "[SEP]"]
    assert text.cut(5).words == [0, 1, 2, 2, 4] and text.cut(10) is text
    assert text.types == [0] * 8 + [1, 1]
    assert isinstance(text.first(3), Pieces) and text.first(3).ids == text.ids[:3]


def test_words_start_where_a_piece_does_not_go_on():
    assert word_starts(["a", "dog", "##gy", "##s", "b", "##c"]) == [0, 1, 1, 1, 4, 4]
    assert word_starts(["##gy", "a"]) == [0, 1]
