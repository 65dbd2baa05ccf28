"""Checkpoints: one safetensors file with everything, written so that no failure loses the last one.

The body of the file holds the tensors; those of the state's entry `model` under exactly their own
names, so that any safetensors tool reads the weights. The metadata holds `state` (the nested
structure, see `common.training.checkpoint_codec`), `meta` (free JSON: strategy, sizes, step, …),
checksums of both and of every tensor, and the format version.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import socket
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from common.errors import CheckpointError, ConfigError
from common.features.origin import origin_differences, origin_notes
from common.files import is_running
from common.training.checkpoint_codec import StateEncoder, checksum, storable
from common.training.weights import FORMAT_KEY, FORMAT_VERSION, open_checkpoint

FEATURES = "features"  # in a meta: the origin of the region features
STALE_SECONDS = 3600.0  # a save that is older than this was killed, whatever machine wrote it


def save_checkpoint(
    path: str | os.PathLike[str], state: Mapping[str, Any], meta: Mapping[str, Any]
) -> None:
    """Write a checkpoint: afterwards the file is the new one, or exactly what it was before.

    The data goes to a hidden folder beside `path`, to the disk (fsync), and then takes the name
    in one step. What a killed process left of an earlier save is removed.

    Args:
        path: the file; its folder is made if needed.
        state: nested dict, list, tuple, number, str, None, tensor and array; see
            `common.training.checkpoint_codec`. Entry `model` is a flat table name → tensor.
        meta: of the same types.

    Raises:
        CheckpointError: a value that cannot be stored (named), or the disk is full, read-only, …
    """
    path = Path(path)
    encoder = StateEncoder()
    texts = {
        "state": json.dumps(encoder.encode_state(state)),
        "meta": json.dumps(encoder.encode(meta, "meta")),
    }
    tensors = storable(encoder.tensors)
    metadata = {
        "format": "pt",
        FORMAT_KEY: str(FORMAT_VERSION),
        **texts,
        **{f"{key}_crc32": str(zlib.crc32(text.encode())) for key, text in texts.items()},
        "crc32": json.dumps({name: checksum(tensor) for name, tensor in tensors.items()}),
    }
    size = sum(tensor.nbytes for tensor in tensors.values()) + sum(map(len, metadata.values()))
    with _failures_named(path, size), _workspace(path) as workspace:
        _write_durably(tensors, metadata, workspace / path.name)
        os.replace(workspace / path.name, path)
    _sync_folder(path)


def _write_durably(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    os.chmod(path, path.parent.stat().st_mode & 0o666)  # the library makes it 0600
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def _workspace(path: Path) -> Iterator[Path]:
    """A folder for one save, on the file system of `path`; gone afterwards, failed or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    workspace = path.parent / f".{path.name}.saving-{socket.gethostname()}-{os.getpid()}"
    workspace.mkdir()
    try:
        yield workspace
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _remove_stale(path: Path) -> None:
    """Remove what saves into this folder left behind when their process was killed."""
    for folder in path.parent.glob(".*.saving-*-*"):
        target, _, writer = folder.name[1:].rpartition(".saving-")
        host, _, pid = writer.rpartition("-")
        if host == socket.gethostname() and pid.isdigit():
            own = int(pid) == os.getpid()
            stale = target == path.name if own else not is_running(int(pid))
        else:
            stale = False
        try:
            stale = stale or time.time() - folder.stat().st_mtime > STALE_SECONDS
        except FileNotFoundError:  # its process ended just now
            continue
        if stale:
            shutil.rmtree(folder, ignore_errors=True)


def _sync_folder(path: Path) -> None:
    """Make the new name survive a power cut, where the file system can do that."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise CheckpointError(
                f"{path}: the new checkpoint is in its place, but the disk did "
                f"not confirm it ({error.strerror})"
            ) from error
    finally:
        os.close(folder)


@contextmanager
def _failures_named(path: Path, size: int) -> Iterator[None]:
    """Turn a failed write into a CheckpointError that says what is left and what is needed."""
    existed = path.is_file()
    try:
        yield
    except (OSError, SafetensorError) as error:
        kept = (
            "the previous checkpoint of this name is untouched"
            if existed
            else "there was no earlier checkpoint of this name"
        )
        raise CheckpointError(
            f"{path}: the checkpoint could not be saved: {_reason(error)}; "
            f"{kept}. {_space(path.parent, size)}"
        ) from error


def _reason(error: Exception) -> str:
    """The system's words for it; safetensors passes the error number on only in its text."""
    found = re.search(r"os error (\d+)", str(error))
    number = getattr(error, "errno", None) or (int(found.group(1)) if found else None)
    text = os.strerror(number) if number else str(error)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        text += " (free some space, or keep fewer checkpoints)"
    return text


def _space(folder: Path, size: int) -> str:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return f"It needs {size / 1e6:,.1f} MB; {free / 1e6:,.1f} MB are free there"


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """State and meta as they were given to `save_checkpoint`; tensors on the CPU.

    Raises:
        CheckpointError: missing, truncated, damaged, or a file that holds weights only.
    """
    path = Path(path)
    with open_checkpoint(path) as file:
        if not file.has_state:
            raise CheckpointError(
                f"{path}: holds weights only, no training state to continue "
                "from; use it with --load instead of --resume"
            )
        state, meta = (file.decoded(key) for key in ("state", "meta"))
        if not isinstance(state, dict) or not isinstance(meta, dict):
            raise CheckpointError(f"{path}: its state and meta are no tables: it is damaged")
        return state, meta


def load_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Only the meta of a checkpoint, without reading its tensors; empty for bare weights.

    Raises:
        CheckpointError: missing, truncated or damaged.
    """
    with open_checkpoint(Path(path)) as file:
        meta = file.decoded("meta")
        if not isinstance(meta, dict):
            raise CheckpointError(f"{path}: its meta is no table: it is damaged")
        return meta


def settings_of(path: Path | None) -> dict[str, Any]:
    """What a run was trained with, from its last checkpoint; empty where there is none.

    Raises:
        CheckpointError: truncated or damaged.
    """
    settings = load_meta(path).get("training") if path is not None and path.is_file() else None
    return settings if isinstance(settings, dict) else {}


def check_compatible(
    meta: Mapping[str, Any],
    expected: Mapping[str, Any],
    path: str | os.PathLike[str],
    any_detector: bool = False,
) -> list[str]:
    """Make sure that a checkpoint was made with the settings of this run.

    Args:
        meta: of the file.
        expected: what this run needs; tables in it are compared entry by entry, and `features` by
            `common.features.origin`.
        path: of the file, for the message.
        any_detector: features of another detector than the file's may be used.

    Returns:
        What is worth saying of features that fit, or may be used.

    Raises:
        CheckpointError: names every key that differs, with both values.
    """
    have, want = meta.get(FEATURES), expected.get(FEATURES)
    notes, differences = list[str](), list[str]()
    if isinstance(have, Mapping) and isinstance(want, Mapping):
        notes += origin_notes(have, want)
        differences += origin_differences(have, want, any_detector)
        expected = {key: value for key, value in expected.items() if key != FEATURES}
    differences += _differences(meta, expected, "")
    if differences:
        raise CheckpointError(
            f"{os.fspath(path)}: made with other settings: {'; '.join(differences)}. Run with the "
            "file's values, or give a checkpoint that was made with the wanted ones"
        )
    return [f"{os.fspath(path)}: {note}" for note in notes]


def _differences(have: Mapping[str, Any], want: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in want.items():
        name = f"{prefix}{key}"
        if key not in have:
            if value is None:  # what an earlier version did not know, and this run does without
                continue
            yield f"{name} is not recorded in the file, this run has {value!r}"
        elif isinstance(value, Mapping) and isinstance(have[key], Mapping):
            yield from _differences(have[key], value, f"{name}.")
        elif have[key] != value:
            yield f"{name} is {have[key]!r} in the file, this run has {value!r}"


def prune_checkpoints(folder: str | os.PathLike[str], pattern: str, keep: int) -> list[Path]:
    """Remove all but the newest files that match.

    Newest is the largest last number in the name (`vqa-0004`), then the latest time of change.

    Args:
        folder: where.
        pattern: glob, for example `vqa-[0-9]*.safetensors`.
        keep: how many stay, at least 1.

    Returns:
        The removed files.
    """
    if keep < 1:
        raise ConfigError(f"keep {keep} checkpoints: at least the newest one must stay")
    files = [file for file in Path(folder).glob(pattern) if file.is_file()]
    removed = sorted(files, key=_age_key)[:-keep]
    for file in removed:
        file.unlink(missing_ok=True)
    return removed


def _age_key(file: Path) -> tuple[int, int]:
    numbers = re.findall(r"\d+", file.stem)
    return (int(numbers[-1]) if numbers else -1, file.stat().st_mtime_ns)


def rng_state() -> dict[str, Any]:
    """State of every global random number generator: torch, CUDA (all devices), numpy, python."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": np.random.get_state(legacy=False),
        "python": random.getstate(),
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Continue the random numbers where `rng_state` was called.

    CUDA states are restored for as many devices as both machines have.
    """
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, value in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(value, device)
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
