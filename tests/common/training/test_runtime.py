"""Runtime: choice of device and precision, seeds, and facts about the machine."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch

from common.errors import ConfigError
from common.training import runtime
from common.training.distributed import World
from common.training.runtime import larger_memory, make_runtime, seed_everything, versions


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_gpu_number_without_a_gpu_says_so_and_runs_on_the_cpu(
    no_gpu: None, capsys: pytest.CaptureFixture
) -> None:
    assert make_runtime("0,1").device == torch.device("cpu")
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "GPU 0,1 was asked for" in printed and "CPU" in printed
    second = make_runtime("0", world=World(1, 2, 1, 2))
    for quiet in (make_runtime("cpu"), make_runtime(None), second):
        assert quiet.device.type == "cpu"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("gpus", ["gpu", "0,,1", "-1", "0,0", "1.5", "0;1"])
def test_invalid_gpu_arguments_are_named(gpus: str) -> None:
    with pytest.raises(ConfigError, match="separated by commas"):
        make_runtime(gpus)


def test_precisions_that_cannot_work_name_the_way_out(no_gpu: None) -> None:
    with pytest.raises(ConfigError, match="use bf16 or fp32"):
        make_runtime("cpu", "fp16")
    with pytest.raises(ConfigError, match="'fp8'; valid: fp32, bf16, fp16"):
        make_runtime("cpu", "fp8")


def test_gpu_numbers_are_those_of_cuda_visible_devices(
    four_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [d.index for d in make_runtime(None).devices] == [0, 1, 2, 3]
    assert make_runtime("3,1", world=World(1, 2, 1, 2)).device == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="no GPU 4 here; visible are 0, 1, 2, 3"):
        make_runtime("4")
    with pytest.raises(ConfigError, match="process 2 of this machine has no GPU"):
        make_runtime("0,1", world=World(2, 3, 2, 3))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert make_runtime("2").device == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="no GPU 0 here; visible are 5, 2"):
        make_runtime("0")


def test_autocast_and_scaler_follow_the_precision() -> None:
    layer, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        made = make_runtime("cpu", precision)
        with made.autocast():
            assert layer(x).dtype == dtype
        assert not made.scaler.is_enabled()
        assert precision in made.describe() and "\n" not in made.describe()


class Pair(NamedTuple):
    left: torch.Tensor
    right: str


@dataclass(frozen=True)
class Record:
    regions: torch.Tensor
    ids: list[int]


def test_move_keeps_the_structure_and_moves_every_tensor() -> None:
    meta = runtime.Runtime(torch.device("meta"), "fp32", torch.amp.GradScaler(enabled=False))
    one = torch.ones(2)
    moved = meta.move(
        {"a": [one, 3], "b": (one, "text"), "c": Pair(one, "q"), "d": Record(one, [1]), "e": None}
    )
    assert type(moved["c"]) is Pair and type(moved["d"]) is Record and moved["e"] is None
    tensors = [moved["a"][0], moved["b"][0], moved["c"].left, moved["d"].regions]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert moved["a"][1] == 3 and moved["b"][1] == "text" and moved["d"].ids == [1]


def test_the_same_seed_gives_the_same_numbers_everywhere() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(7)
    first = draw()
    assert draw() != first
    seed_everything(7)
    assert draw() == first
    for bad in (-1, 2**32):
        with pytest.raises(ConfigError, match=f"seed {bad}"):
            seed_everything(bad)


def test_peak_memory_counts_a_large_array_of_this_process_only() -> None:
    code = (
        "import numpy as np; from common.training.runtime import peak_memory\n"
        "before = peak_memory()['peak_rss_bytes']; np.ones(8 << 20)\n"
        "after = peak_memory()\n"
        "print(before, after['peak_rss_bytes'], after['peak_cuda_bytes'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after, cuda = done.stdout.split()
    assert 60 << 20 <= int(after) - int(before) <= 80 << 20
    assert (cuda == "None") == (not torch.cuda.is_available())


def test_versions_name_what_a_result_depends_on() -> None:
    found = versions()
    assert found["torch"] == torch.__version__ and found["package"]
    assert set(found) == {"python", "torch", "transformers", "package", "commit"}
    assert found["commit"] is None or len(found["commit"].removesuffix("-dirty")) >= 7


def test_importing_the_modules_sets_nothing_up() -> None:
    code = (
        "import random; before = random.getstate(); import sys, torch\n"
        "import common.training, common.runs.backbones\n"
        "assert random.getstate() == before and not torch.cuda.is_initialized()\n"
        "heavy = {'tensorboardX', 'wandb', 'pytorch_optimizer', 'pytorch_pretrained_bert',\n"
        "         'entmax', 'lmdb', 'easy_vqa', 'scipy', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done.stderr


def test_of_two_peaks_the_larger_counts() -> None:
    first = {"peak_rss_bytes": 5, "peak_cuda_bytes": 9}
    assert larger_memory({}, first) == first
    second = {"peak_rss_bytes": 7, "peak_cuda_bytes": 3}
    assert larger_memory(first, second) == {"peak_rss_bytes": 7, "peak_cuda_bytes": 9}
    nothing = {"peak_rss_bytes": 7, "peak_cuda_bytes": None}
    assert larger_memory(nothing, nothing) == nothing
