"""Questions about one image are evaluated together, and their answers stay what they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common.adapt.adapting import adapt
from common.adapt.attention import set_attention
from common.adapt.sharing import ComputedRows, once
from common.data.annotations import AnswerVocabulary, Example
from common.data.vqa_dataset import VQADataset
from common.features.sources import FeatureSources
from common.features.store import RegionFeatures
from common.modules.attention import AttentionOptions
from common.tasks.evaluation_batches import EvaluationBatches
from common.tasks.shared_images import SharedEvaluation, SharedImages, together
from common.tasks.vqa import VQATask
from common.training.runtime import make_runtime
from lxrt.inputs import LxmertInputs
from lxrt.modeling import VQAModel
from tests.common.recording import Repeating
from tests.common.tasks.test_gpu_batches import TEXTS, WIDTH, tokenizer, write_store  # noqa: F401
from tests.common.tiny_models import lxmert_config

ABOUT = [0, 1, 0, 2, 1, 0, 3, 0, 1, 2]
TOGETHER = [0, 2, 5, 7, 1, 4, 8, 3, 9, 6]
ANSWERS = ["yes", "no", "red", "blue", "two"]


@pytest.fixture
def data(tmp_path: Path) -> VQADataset:
    write_store(tmp_path / "store", "float32", (3, 1, 5, 4))
    examples = [
        Example(100 - n, f"image {image}", TEXTS[n % 4], {"yes": 1.0}, "other", f"kind {n % 2}")
        for n, image in enumerate(ABOUT)
    ]
    store = RegionFeatures.open(tmp_path / "store")
    return VQADataset(examples, FeatureSources([store]), AnswerVocabulary(ANSWERS))


def model_of(strategy: str) -> nn.Module:
    torch.manual_seed(1)
    sizes = replace(
        lxmert_config(),
        visual_feat_dim=WIDTH,
        vocab_size=200,
        max_position_embeddings=40,
        r_layers=2,
    )
    model = adapt(VQAModel(sizes).double(), strategy, "small")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


class Asked:
    """Answers in float64; remembers logits by their order, and how many rows are embedded."""

    def __init__(self, model: nn.Module) -> None:
        self.logits: list[torch.Tensor] = []
        self.embedded: list[int] = []
        model.bert.encoder.visn_fc.register_forward_hook(
            lambda module, given, found: self.embedded.append(len(found))
        )

    def __call__(self, model, inputs):
        wide = {
            k: x.double() if x is not None and x.is_floating_point() else x
            for k, x in inputs.items()
        }
        self.logits.append(model(**wide))
        return self.logits[-1]


def evaluated(data, words, strategy, size, on, runtime=None, say=lambda line: None):
    """An evaluation, what was asked, and the logits (10, 5) in the order of the data."""
    model = model_of(strategy)
    asked, images = Asked(model), SharedImages(on, say)
    batches = EvaluationBatches(size, images=images)
    runtime = runtime or make_runtime("cpu")
    make = LxmertInputs(words)
    task = VQATask(data, data, make, runtime, batches, progress=False, answer=asked)
    found = task.evaluate(model, data, "test", 3)
    logits = torch.cat(asked.logits)
    ids = [example.image_id for example in data.examples]
    order = torch.tensor(together(ids) if on else range(len(ids)))
    return found, asked, torch.empty_like(logits).index_copy(0, order, logits)


@pytest.mark.parametrize("strategy", ["standard", "SpotTune_Block", "SpotTune", "BlockDrop"])
@pytest.mark.parametrize("size", [1, 4, 50])
def test_answers_and_decisions_are_those_of_every_question_by_itself(
    data,
    tokenizer,  # noqa: F811
    strategy,
    size,
):
    one, together, logits = evaluated(data, tokenizer, strategy, size, True)
    other, apart, expected = evaluated(data, tokenizer, strategy, size, False)
    torch.testing.assert_close(logits, expected, rtol=0.0, atol=1e-12)
    ids = [example.question_id for example in data.examples]
    assert list(one.predictions) == list(one.best) == ids
    assert one.predictions == other.predictions and one.best == other.best
    assert one.scores == other.scores
    assert one.decisions.share == other.decisions.share
    assert one.decisions.share_by_type() == other.decisions.share_by_type()
    assert apart.embedded == {1: [1] * 10, 4: [4, 4, 2], 50: [10]}[size]
    # 0 0 0 0 | 1 1 1 2 | 2 3
    assert together.embedded == {1: [1] * 10, 4: [1, 2, 2], 50: [4]}[size]


def test_the_order_keeps_that_of_images_and_of_their_questions():
    ids = [f"image {image}" for image in ABOUT]
    assert together(ids) == TOGETHER


def test_the_log_says_what_was_shared_once_for_every_part(data, tokenizer):  # noqa: F811
    said: list[str] = []
    images = SharedImages(True, said.append)
    model = model_of("standard")
    task = VQATask(
        data,
        data,
        LxmertInputs(tokenizer),
        make_runtime("cpu"),
        EvaluationBatches(50, images=images),
        progress=False,
        answer=Asked(model),
    )
    for _ in range(2):
        task.evaluate(model, data, "held out")
    line = "10 questions about 4 images; what depends on the image alone was computed for 40% of"
    assert said == [f"held out: {line} them"]
    evaluated(data, tokenizer, "standard", 4, False, say=pytest.fail)


def test_the_log_counts_the_questions_of_all_processes(data):
    said: list[str] = []
    runtime = make_runtime("cpu")
    other = (6, 3, 12, 24)  # rows, images, times and rows computed
    runtime = replace(runtime, world=SimpleNamespace(gather=lambda mine: [mine, other]))
    shared = SharedEvaluation(SharedImages(True, said.append), runtime, nn.Linear(2, 2))
    with shared.within(["a", "b"]):
        pass
    shared.tell("valid", "questions")
    (line,) = said
    assert line.startswith("valid: 8 questions about 5 images; ") and "for 50% of them" in line


def test_a_pass_that_failed_is_not_counted():
    shared = SharedEvaluation(SharedImages(), make_runtime("cpu"), nn.Linear(2, 2))
    with pytest.raises(MemoryError), torch.no_grad(), shared.within(["a", "a"]):
        once("vision", lambda x: x, torch.zeros(2, 1))
        raise MemoryError
    assert shared.computed == ComputedRows()


def test_passes_that_are_recorded_share_nothing_and_the_log_says_so(data, tokenizer):  # noqa: F811
    said: list[str] = []
    runtime = replace(make_runtime("cpu"), recorder=Repeating())
    found, asked, _ = evaluated(data, tokenizer, "standard", 5, True, runtime, said.append)
    expected, *_ = evaluated(data, tokenizer, "standard", 5, False)
    assert found.predictions == expected.predictions
    assert set(asked.embedded) == {5}
    assert len(said) == 1 and "10 questions about 4 images, each by itself" in said[0]


def test_where_spans_belong_to_places_in_a_batch_nothing_changes_places(data, tokenizer):  # noqa: F811
    model, said = model_of("standard"), list[str]()
    set_attention(model, AttentionOptions(span="published", batch=5))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("current_val"):
                parameter.copy_(torch.linspace(0.2, 0.6, parameter.numel()).view_as(parameter))
    found = []
    for on in (True, False):
        batches = EvaluationBatches(5, images=SharedImages(on, said.append))
        make, asked = LxmertInputs(tokenizer), Asked(model)
        task = VQATask(data, data, make, make_runtime("cpu"), batches, progress=False, answer=asked)
        found.append((task.evaluate(model, data, "test"), torch.cat(asked.logits)))
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0.0, atol=0.0)
    assert len(said) == 1 and said[0].endswith("published spans belong to places in a batch")


def test_a_look_at_some_questions_computes_each_of_them(data, tokenizer):  # noqa: F811
    model = model_of("standard").eval()
    asked = Asked(model)
    task = VQATask(data, data, LxmertInputs(tokenizer), make_runtime("cpu"), 8, answer=asked)
    task.look(model, data, [0, 2, 5])
    assert asked.embedded == [3]


def test_the_flag_computes_every_sample():
    from lxrt.finetuning import PROGRAM

    for words, on in (([], True), (["--every-sample"], False), (["--every_sample"], False)):
        options = PROGRAM.parse(words)
        assert PROGRAM.finetuning(options, "small").evaluation_batches(print).images.on == on
