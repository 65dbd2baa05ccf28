"""Where and in which precision a run computes: device, autocast, loss scaling, seeds, facts."""

from __future__ import annotations

import dataclasses
import os
import platform
import random
import subprocess
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigError
from common.features.carried import Carried
from common.files import checkout
from common.installed import PACKAGE, installed_version
from common.training.distributed import World
from common.training.recording import CudaRecorder, Recorder

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GRAPHS = ("auto", "on", "off")
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Runtime:
    """What `make_runtime` decided.

    Attributes:
        device: of this process.
        precision: a key of PRECISIONS.
        scaler: loss scaling; passes everything through unless the precision is fp16.
        devices: all CUDA devices that were asked for; empty on the CPU.
        world: the processes that train together.
        recorder: records passes to repeat them, see `common.training.graphs`; None: passes are
            run as they are.
    """

    device: torch.device
    precision: str
    scaler: torch.amp.GradScaler
    devices: tuple[torch.device, ...] = ()
    world: World = field(default_factory=World)
    recorder: Recorder | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether batches are copied to a device that computes faster than they can be read."""
        return self.device.type != "cpu"

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which matrix products run in the precision of the run."""
        return torch.autocast(
            self.device.type, dtype=PRECISIONS[self.precision], enabled=self.precision != "fp32"
        )

    def move(self, batch: Batch) -> Batch:
        """The same nested structure (dict, list, tuple, dataclass) with its tensors on the device.

        What is `Carried` is put together there; anything else that is no tensor stays as it is.
        Copies from pinned memory overlap with the computation.
        """
        moved: Batch = map_tensors(batch, lambda t: t.to(self.device, non_blocking=True))
        return arrived(moved)

    def describe(self) -> str:
        """One line: device, precision, threads, versions."""
        if self.device.type == "cuda":
            where = f"{self.device} ({torch.cuda.get_device_name(self.device)})"
        else:
            where = f"CPU ({torch.get_num_threads()} threads)"
        several = f", {self.world.size} processes" if self.world.size > 1 else ""
        return f"{where}{several}, {self.precision}, torch {torch.__version__}"


def make_runtime(
    gpus: str | None = None,
    precision: str = "fp32",
    world: World | None = None,
    graph: str = "auto",
) -> Runtime:
    """Choose the device and precision of this process.

    Args:
        gpus: `cpu`, or GPU numbers (`0`, `0,1`). They mean the machine's GPUs as in
            CUDA_VISIBLE_DEVICES: where a run script has set that variable, a number has to be one
            of it. None: all GPUs that are visible. On a machine without a GPU any number means
            the CPU, and a line on the screen says so.
        precision: `fp32`, `bf16` or `fp16`.
        world: the processes that train together; default: this one alone. A process takes the
            GPU of its position on its machine.
        graph: one of GRAPHS: whether passes are recorded as CUDA graphs.

    Raises:
        ConfigError: no such GPU or precision, or a precision or graphs that the device does not
            have.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}; valid: {', '.join(PRECISIONS)}")
    world = world or World()
    local_rank = world.local_rank
    numbers = _parse_gpus(gpus)
    devices: tuple[torch.device, ...] = ()
    if numbers != [] and torch.cuda.is_available():
        devices = tuple(torch.device("cuda", i) for i in _visible_positions(numbers))
        if not 0 <= local_rank < len(devices):
            raise ConfigError(
                f"process {local_rank} of this machine has no GPU: only "
                f"{len(devices)} are given; start one process per GPU"
            )
    elif numbers and world.main:
        print(
            f"No GPU is usable here (torch {torch.__version__}), but GPU {gpus} was asked for: "
            "running on the CPU.",
            flush=True,
        )
    device = devices[local_rank] if devices else torch.device("cpu")
    _check_precision(device, precision)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if graph == "on" and device.type == "cpu":
        raise ConfigError("--graph on needs a GPU, and this run is on the CPU; use auto or off")
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    recorder = CudaRecorder(device) if device.type == "cuda" and graph != "off" else None
    return Runtime(device, precision, scaler, devices, world, recorder)


def _parse_gpus(gpus: str | None) -> list[int] | None:
    """Numbers; [] for `cpu`; None for all that are visible."""
    if gpus is None:
        return None
    if gpus.strip().lower() in ("cpu", ""):
        return []
    parts = [part.strip() for part in gpus.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
        raise ConfigError(
            f"GPUs {gpus!r}: give different numbers separated by commas, such as 0 or 0,1, or cpu"
        )
    return [int(part) for part in parts]


def _visible_positions(numbers: list[int] | None) -> list[int]:
    """Torch's device numbers: positions among the visible GPUs."""
    count = torch.cuda.device_count()
    if numbers is None:
        return list(range(count))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
    names = [name.strip() for name in visible.split(",")][:count]
    if not all(name.isdecimal() for name in names):  # UUIDs: only positions can be meant
        names = [str(i) for i in range(count)]
    missing = [number for number in numbers if str(number) not in names]
    if missing:
        raise ConfigError(
            f"no GPU {', '.join(map(str, missing))} here; visible are "
            f"{', '.join(names)} (CUDA_VISIBLE_DEVICES), or use cpu"
        )
    return [names.index(str(number)) for number in numbers]


def _check_precision(device: torch.device, precision: str) -> None:
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "precision fp16 needs a GPU, and this run is on the CPU; use bf16 or fp32"
        )
    if precision == "bf16" and device.type == "cuda":
        with torch.cuda.device(device):
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                raise ConfigError(
                    f"{torch.cuda.get_device_name(device)} has no bf16; use fp16 or fp32"
                )


def arrived(batch: Batch) -> Batch:
    """The same nested structure with what is `Carried` put together where it is."""
    whole: Batch = _map(batch, Carried, Carried.joined)
    return whole


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nested structure (dict, list, tuple, dataclass) with its tensors changed."""
    return _map(value, Tensor, change)


def _map(value: Any, kind: type, change: Callable[[Any], Tensor]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map(item, kind, change) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(item, kind, change) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, kind, change) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(
            value, **{name: _map(getattr(value, name), kind, change) for name in names}
        )
    return value


def set_threads(wanted: int | None, small: bool, processes: int = 1) -> None:
    """Threads of this process on the CPU.

    The operators of a small model are so short that waking a second thread costs more than it
    computes (measured: 2.9 times slower with 2 threads and passive waiting).

    Args:
        wanted: number of threads, or None for the default.
        small: whether the model is small; the default is then 1, else torch's.
        processes: on this machine, which share its cores.
    """
    if wanted is not None or small:
        torch.set_num_threads(wanted or 1)
    elif processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), numpy and python.

    Raises:
        ConfigError: outside 0 … 2³² − 1, which numpy cannot take.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed {seed}: give a whole number from 0 to {2**32 - 1}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def peak_memory() -> dict[str, int | None]:
    """Largest memory so far, in bytes: of this process, and of its tensors on the current GPU.

    None for the GPU where there is none.

    Linux' VmHWM is preferred to `getrusage`, whose value a started process inherits.
    """
    cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {"peak_rss_bytes": _peak_rss(), "peak_cuda_bytes": cuda}


def forget_gpu_peak() -> None:
    """Let `peak_memory` of the current GPU be that from now on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def larger_memory(
    one: Mapping[str, int | None], other: Mapping[str, int | None]
) -> dict[str, int | None]:
    """The larger of two `peak_memory`, each number for itself."""
    return {
        name: max((x for x in (one.get(name), other.get(name)) if x is not None), default=None)
        for name in {**one, **other}
    }


def _peak_rss() -> int:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str | None]:
    """What a result depends on; None for what is not installed or not known."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": installed_version("transformers"),
        "package": installed_version(PACKAGE),
        "commit": _commit(),
    }


@cache
def _commit() -> str | None:
    """Commit of the checkout that this file belongs to, `-dirty` if it has changes.

    As it is when first asked: what changes later is not what runs.
    """
    root = checkout()
    if root is None:
        return None
    git = ["git", "-C", str(root)]
    try:
        top = subprocess.run(
            [*git, "rev-parse", "--show-toplevel"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
        if Path(top).resolve() != root:
            return None  # installed below somebody else's checkout
        return subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
