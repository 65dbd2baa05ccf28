"""Every text with every image: what is computed once changes nothing; ranks."""

from __future__ import annotations

import pytest
import torch

from common.adapt.adapting import adapt, adaptive_part
from common.adapt.merging import merge
from common.errors import DataError
from tests.common.tiny_models import drift_layers, vilbert_config
from tests.vilbert.models import close, inputs_of, randomise, rows, tasks_model
from vilbert.heads import VILBertForVLTasks
from vilbert.retrieval import PairScorer, blocks_by_length, image_ranks, text_ranks


def one_by_one(model: VILBertForVLTasks, zero_shot: bool) -> torch.Tensor:
    """(4, 4), each pair by itself."""
    inputs, scores = inputs_of(4), torch.zeros(4, 4, dtype=torch.float64)
    with torch.no_grad():
        for text in range(4):
            for image in range(4):
                found = model(**rows(inputs, [text], [image]))
                scores[text, image] = (
                    found.vil_binary_prediction.softmax(-1)[0, 0]
                    if zero_shot
                    else found.vil_logit[0, 0]
                )
    return scores


@pytest.mark.parametrize("zero_shot", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"with_coattention": False},
        {"v_biattention_id": (1, 2), "t_biattention_id": (1, 3)},
        {"v_biattention_id": (0,), "t_biattention_id": (0,)},
    ],
)
def test_what_is_computed_once_gives_the_scores_of_single_pairs(sizes, zero_shot):
    expected = one_by_one(tasks_model(**sizes), zero_shot)
    for reuse in (True, False):
        scorer = PairScorer(tasks_model(**sizes), zero_shot, reuse)
        assert scorer.reuses == (reuse and sizes.get("with_coattention", True))
        inputs = inputs_of(4)
        close(scorer.scores(scorer.texts(inputs), scorer.images(inputs)), expected)
        # Parts of the matrix, texts cut to their lengths.
        part = {name: x[1:3] for name, x in inputs.items()}
        longest = int(part["attention_mask"].sum(1).max())
        short = {
            n: x[:, :longest] if n in ("input_ids", "token_type_ids", "attention_mask") else x
            for n, x in part.items()
        }
        close(scorer.scores(scorer.texts(short), scorer.images(inputs)), expected[1:3])


def test_layers_before_the_first_connection_run_once_for_each_text_and_image():
    model = tasks_model(v_biattention_id=(1, 2), t_biattention_id=(1, 3))
    seen = {"layer.0": [], "v_layer.0": [], "c_layer.0": []}
    for name in seen:
        module = model.bert.encoder.get_submodule(name)
        part = module.biattention.query1 if name == "c_layer.0" else module.attention.self.query
        part.register_forward_hook(lambda *a, name=name: seen[name].append(len(a[2])))
    scorer, inputs = PairScorer(model), inputs_of(4)
    texts, images = scorer.texts(inputs), scorer.images(inputs)
    for _ in range(2):
        scorer.scores(texts, images)
    assert seen == {"layer.0": [4], "v_layer.0": [4], "c_layer.0": [16, 16]}


def decided(strategy: str) -> VILBertForVLTasks:
    model = randomise(VILBertForVLTasks(vilbert_config())).double().eval()
    model.use(("vil_logit",))
    adapt(model, strategy, "small")
    drift_layers(model, 0.3)
    randomise(adaptive_part(model).policy)
    return model


def test_decisions_for_every_pair_are_made_for_every_pair():
    model = decided("SpotTune")
    scorer, inputs = PairScorer(model), inputs_of(4)
    assert not scorer.reuses
    found = scorer.scores(scorer.texts(inputs), scorer.images(inputs))
    assert len(adaptive_part(model).last.decisions.unique(dim=0)) > 1
    close(found, one_by_one(model, False))


@pytest.mark.parametrize("strategy", ["SpotTune_Block", "SpotTune"])
def test_pairs_share_what_was_decided_alike(strategy):
    model, inputs = decided(strategy), inputs_of(4)
    part = adaptive_part(model)
    embedded: list[int] = []
    model.bert.v_embeddings.register_forward_hook(lambda *a: embedded.append(len(a[2])))
    found = {}
    for reuse in (True, False):
        scorer = PairScorer(model, reuse=reuse)
        found[reuse] = scorer.scores(scorer.texts(inputs), scorer.images(inputs))
        assert len(part.last.decisions) == 16
    close(found[True], found[False])
    assert embedded == [4, 16]


@pytest.mark.parametrize("strategy", ["SpotTune", "BlockDrop"])
def test_the_same_decisions_for_all_pairs_are_merged_and_reused(strategy):
    model, inputs = decided(strategy), inputs_of(4)
    part = adaptive_part(model)
    decisions = torch.ones(len(part.live))
    decisions[::3] = 0
    with part.force(decisions.expand(1, -1)):
        expected = one_by_one(model, False)
    merge(model, decisions)
    scorer = PairScorer(model)
    assert scorer.reuses
    close(scorer.scores(scorer.texts(inputs), scorer.images(inputs)), expected)


def test_texts_of_like_length_stand_together():
    assert list(blocks_by_length([5, 3, 9, 3, 4], 2)) == [[1, 3], [4, 0], [2]]


def test_ranks_are_those_of_the_whole_matrix():
    """Also where several images are right for a text."""
    torch.manual_seed(0)
    texts, images = 15, 5
    right = [[n % images] if n % 4 else [n % images, (n + 2) % images] for n in range(texts)]
    scores = torch.randn(texts, images)
    scores[3] = 1.0  # says the same of all images
    blocks = [(places, scores[places]) for places in blocks_by_length([1] * texts, 4)]
    found = text_ranks(blocks, right).ranks.tolist()
    for text, rank in enumerate(found):
        best = max(scores[text, i].item() for i in right[text])
        wrong = [i for i in range(images) if i not in right[text]]
        assert rank == 1 + sum(scores[text, i].item() >= best for i in wrong)
    assert found[3] == images
    ranks = image_ranks(lambda: blocks, right, images).ranks.tolist()
    for image, rank in enumerate(ranks):
        own = [t for t in range(texts) if image in right[t]]
        best = max(scores[t, image].item() for t in own)
        above = sum(scores[t, image].item() >= best for t in range(texts) if t not in own)
        assert rank == 1 + above


def test_figures_are_recalls_median_and_mean():
    blocks = [([0, 1, 2, 3], torch.tensor([[3.0, 2, 1], [3, 2, 1], [3, 2, 1], [1, 2, 3]]))]
    figures = text_ranks(blocks, [[0], [1], [2], [2]]).figures()
    assert figures == {
        "R@1": 50.0,
        "R@5": 100.0,
        "R@10": 100.0,
        "median rank": 1.5,
        "mean rank": 1.75,
    }


def test_texts_without_scores_and_images_without_texts_are_errors():
    blocks = [([0], torch.tensor([[1.0, 2.0]]))]
    with pytest.raises(DataError, match="text 1 has no scores"):
        text_ranks(blocks, [[0], [1]])
    with pytest.raises(DataError, match="text 0 has no image"):
        text_ranks(blocks, [[]])
    with pytest.raises(DataError, match="image 1 has no text"):
        image_ranks(lambda: blocks, [[0]], 2)


def test_decisions_that_are_drawn_depend_on_the_pair_alone():
    """However texts and images fall into blocks."""
    model = decided("SpotTune")
    adaptive_part(model).options.policy_eval = "sample"
    scorer, inputs = PairScorer(model), inputs_of(4)
    keys = torch.arange(16).reshape(4, 4)
    whole = scorer.scores(scorer.texts(inputs), scorer.images(inputs), keys.flatten().tolist())
    part = {name: x[1:3] for name, x in inputs.items()}
    found = scorer.scores(
        scorer.texts(part), scorer.images(part), keys[1:3, 1:3].flatten().tolist()
    )
    close(found, whole[1:3, 1:3])
    other = scorer.scores(scorer.texts(part), scorer.images(part), [100, 101, 102, 103])
    assert not torch.allclose(other, found)
