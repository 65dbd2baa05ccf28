"""What travels to a GPU is half precision where it is kept so, and what arrives is exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.data.annotations import AnswerVocabulary, Example
from common.data.tokenizer import Tokenizer, small_vocabulary
from common.data.vqa_dataset import VQADataset
from common.features.carried import Carried
from common.features.sources import FeatureSources
from common.features.store import RegionFeatures
from common.features.writer import RegionFeatureWriter
from common.tasks.vqa import VQATask
from common.training.batch_loader import BatchLoader
from common.training.batch_order import MicroBatches
from common.training.distributed import World
from common.training.finiteness import FinitenessCheck
from common.training.prefetching import prefetched
from common.training.runtime import arrived, make_runtime
from lxrt.inputs import LxmertInputs
from tests.common.on_gpu import pretended_gpu
from vilbert.inputs import Limits, ViLBertInputs
from vlbert.vqa_dataset import Transform, VLBertInputs

WIDTH = 6
COUNTS = (3, 1, 5, 9)
TEXTS = ("what is it", "is it red", "what shape is there in the image and why is it so", "what")


def write_store(folder: Path, dtype: str, counts: tuple[int, ...], first: int = 0) -> None:
    draw = torch.Generator().manual_seed(first)
    with RegionFeatureWriter(folder, WIDTH, dtype) as writer:
        for number, count in enumerate(counts, first):
            corners = torch.rand(count, 2, 2, generator=draw).sort(1).values
            boxes = (corners * torch.tensor([64.0, 48.0])).flatten(1)
            features = torch.rand(count, WIDTH, generator=draw) * 70
            writer.add(f"image {number}", 64, 48, boxes, features)
        writer.finish()


def questions(
    folder: Path, dtypes: tuple[str, ...], counts: tuple[int, ...] = COUNTS
) -> VQADataset:
    """Four questions about an image each in stores of such dtypes."""
    share = len(counts) // len(dtypes)
    stores = []
    for n, dtype in enumerate(dtypes):
        write_store(folder / f"{n}", dtype, counts[n * share : (n + 1) * share], n * share)
        stores.append(RegionFeatures.open(folder / f"{n}"))
    examples = [
        Example(n, f"image {n}", text, {"yes": 1.0}, "other") for n, text in enumerate(TEXTS)
    ]
    return VQADataset(examples, FeatureSources(stores), AnswerVocabulary(["yes", "no"]))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    (tmp_path / "words").mkdir()
    (tmp_path / "words/vocab.txt").write_text("\n".join(small_vocabulary(TEXTS)) + "\n")
    return Tokenizer(tmp_path / "words")


MAKERS = {
    "lxmert": LxmertInputs,
    "vlbert": lambda words: VLBertInputs(words, Transform((), whole_image=True), 40),
    "vilbert": lambda words: ViLBertInputs(words, Limits(20, 8)),
}


def carries_half(value: object) -> bool:
    """Whether there is float16 somewhere in it."""
    if isinstance(value, Carried):
        return any(carries_half(part) for part in value.parts)
    return isinstance(value, torch.Tensor) and value.dtype == torch.float16


@pytest.mark.parametrize("dtypes", [("float16",), ("float32",), ("float16", "float32")])
@pytest.mark.parametrize("backbone", MAKERS)
def test_the_model_sees_the_same_numbers(tmp_path, tokenizer, backbone, dtypes):
    data, make = questions(tmp_path, dtypes), MAKERS[backbone](tokenizer)
    on_cpu = VQATask(data, data, make, make_runtime("cpu"), 2)
    on_gpu = VQATask(data, data, make, pretended_gpu(), 2)
    for places in ([0, 1], [2, 3], [0, 1, 2, 3]):
        plain, travelling = on_cpu.read(places, 0), on_gpu.read(places, 0)
        assert not any(map(carries_half, plain.inputs.values()))
        # Of stores of both kinds only what is read of float16 alone stays so.
        expected = dtypes == ("float16",) or (len(dtypes) == 2 and places == [0, 1])
        assert any(map(carries_half, travelling.inputs.values())) == expected
        found = on_gpu.runtime.move(travelling).inputs
        padded = make.padded(plain.inputs, data.counts)
        assert list(found) == list(padded)
        for name, x in padded.items():
            assert x is None or (x.dtype == found[name].dtype and torch.equal(x, found[name])), name


def test_workers_and_the_thread_hand_half_precision_on(tmp_path, tokenizer):
    data = questions(tmp_path, ("float16",))
    task = VQATask(data, data, VLBertInputs(tokenizer, Transform(), 40), pretended_gpu(), 2)
    batches = BatchLoader(MicroBatches(task, 0, World(), 1), [[0, 1], [2, 3]], 1)
    seen = []
    for read, moved in prefetched(batches, task.runtime):
        assert carries_half(read[0].inputs["boxes"])
        assert moved[0].inputs["boxes"].dtype == torch.float32
        seen += moved[0].samples
    assert seen == [0, 1, 2, 3]


def test_a_batch_on_its_way_can_be_written_to_a_file(tmp_path, tokenizer):
    data = questions(tmp_path, ("float16",))
    task = VQATask(data, data, LxmertInputs(tokenizer), pretended_gpu(), 2)
    check = FinitenessCheck(tmp_path, "", lambda step: arrived(task.read([0, 1], 0)), False)
    check.look({"loss": torch.tensor(float("nan"))}, task.read([0, 1], 0), 1)
    with pytest.raises(Exception, match="is not finite at step 1; the batch"):
        check.check()
    assert (tmp_path / "non_finite_batch.safetensors").is_file()


def test_equally_many_regions_are_not_padded(tmp_path, tokenizer):
    data = questions(tmp_path, ("float16",), (4, 4, 4, 4))
    task = VQATask(data, data, LxmertInputs(tokenizer), pretended_gpu(), 2)
    inputs = task.runtime.move(task.read([0, 1], 0)).inputs
    assert inputs["region_mask"] is None and inputs["features"].shape == (2, 4, WIDTH)
