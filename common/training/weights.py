"""Weights from files: finding them, reading them without running code, putting them in a model."""

from __future__ import annotations

import math
import os
import pickle
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from common.errors import CheckpointError, DataError
from common.reading import parse_json, short
from common.training.checkpoint_codec import checksum, decode

FORMAT_KEY, FORMAT_VERSION = "adaptive_finetuning", 1
SUFFIXES = (".safetensors", ".pth", ".model", ".bin")
Shape = tuple[int, ...]
BEGINNING = 512  # bytes of a file that say what it is
COMPILED = "._orig_mod."
SHOWN = 3  # names per group in messages about keys


class CheckpointFile:
    """An open safetensors file whose tensors are checked and handed out as independent copies."""

    def __init__(self, path: Path, handle: Any) -> None:
        self.path = path
        self.metadata: dict[str, str] = handle.metadata() or {}
        self.names: list[str] = list(handle.keys())
        self._handle = handle
        self._checksums = _parsed(self.metadata.get("crc32", "{}"), f"{path}: header entry crc32")
        self._read: dict[str, Tensor] = {}
        if not isinstance(self._checksums, dict):
            raise self._damaged("the entry 'crc32' of its header")
        version = self.metadata.get(FORMAT_KEY, "0")
        if not version.isdecimal():
            raise self._damaged(f"the entry {FORMAT_KEY!r} of its header")
        if int(version[:9]) > FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: written by a newer version of this package (format "
                f"{self.metadata[FORMAT_KEY]}, known is {FORMAT_VERSION}); "
                "update the package"
            )

    @property
    def has_state(self) -> bool:
        """Whether `save_checkpoint` wrote it; otherwise it holds bare weights."""
        return FORMAT_KEY in self.metadata

    def count(self) -> int:
        """Numbers in all tensors together."""
        shapes = (self._handle.get_slice(name).get_shape() for name in self.names)
        return sum(math.prod(shape) for shape in shapes)

    def structure(self, key: str) -> Any:
        """The encoded JSON in the metadata entry `state` or `meta`; {} for bare weights.

        Raises:
            CheckpointError: it is not the text that was written.
        """
        text = self.metadata.get(key, "{}")
        expected = self.metadata.get(f"{key}_crc32")
        if self.has_state and str(zlib.crc32(text.encode())) != expected:
            raise self._damaged(f"the entry {key!r} of its header")
        return _parsed(text, f"{self.path}: header entry {key!r}")

    def decoded(self, key: str) -> Any:
        """The structure `state` or `meta` with its tensors, as it was given to `save_checkpoint`.

        Raises:
            CheckpointError: it is not what this code writes.
        """
        return decode(self.structure(key), self.tensor, f"{self.path}: entry {key!r}")

    def tensor(self, name: str) -> Tensor:
        """One tensor on the CPU; the same object when asked again.

        A copy, not a view into the file: its memory is aligned as torch's own, so that later
        arithmetic rounds as it did before saving.

        Raises:
            CheckpointError: its bytes are not those that were written.
        """
        if name not in self._read:
            if name not in self.names:
                raise CheckpointError(f"{self.path}: tensor {short(name)} is not in it: damaged")
            tensor = self._handle.get_tensor(name).clone()
            expected = self._checksums.get(name)
            if expected is not None and checksum(tensor) != expected:
                raise self._damaged(f"tensor {name!r}")
            self._read[name] = tensor
        return self._read[name]

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {what} is damaged (checksum differs); copy the file "
            "again or use an older checkpoint"
        )


@contextmanager
def open_checkpoint(path: Path) -> Iterator[CheckpointFile]:
    """Open a safetensors file.

    Raises:
        CheckpointError: missing, empty, truncated, damaged or no safetensors file.
    """
    require_file(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            yield CheckpointFile(path, handle)
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(_damaged(path, "a safetensors checkpoint", error)) from error


def _parsed(text: str, where: str) -> Any:
    try:
        return parse_json(text, where, any_text=True)
    except DataError as error:
        raise CheckpointError(str(error)) from None


def require_file(path: Path) -> None:
    """Raise CheckpointError unless `path` is a file with something in it."""
    if not path.is_file():
        what = "is a folder, not a checkpoint file" if path.is_dir() else "no such checkpoint"
        raise CheckpointError(f"{path}: {what}")
    if path.stat().st_size == 0:
        raise CheckpointError(
            f"{path}: the file is empty (0 bytes); a save or a download broke "
            "off: fetch it again or use an older checkpoint"
        )


def _damaged(path: Path, kind: str, error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return (
        f"{path}: not {kind}, or truncated or damaged ({path.stat().st_size:,} bytes; "
        f"{lines[0][:200]}); fetch it again or use an older checkpoint"
    )


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Weights of a checkpoint of ours, of a safetensors file, or of an upstream pickle.

    What a file is, is read from its first bytes, not from its name. Pickles are read by torch's
    restricted unpickler: nothing in them is ever executed.

    Returns:
        Name → tensor on the CPU. Upstream files may nest them under `state_dict` or `model`.

    Raises:
        CheckpointError: missing, damaged, without weights, or with anything but data in it.
    """
    path = Path(path)
    require_file(path)
    with open(path, "rb") as file:
        start = file.read(BEGINNING)
    _check_beginning(start, path)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        weights = _load_safetensors(path)
    else:
        weights = _flat_weights(_load_pickle(path), path)
    if any(COMPILED in f".{name}" for name in weights):
        print(f"{path}: {COMPILED[1:]!r} of torch.compile is left out of the names")
        weights = strip_prefix(weights, COMPILED[1:], anywhere=True)
    return weights


def _check_beginning(start: bytes, path: Path) -> None:
    """Say what a file is that is fetched instead of weights often enough."""
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: a Git LFS pointer ({path.stat().st_size} bytes), not the weights it stands "
            "for: fetch them with `git lfs pull`, or download the file itself"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(
            f"{path}: a web page, not weights: the download gave an error page or asked to log in; "
            "open it to see why, and fetch the file again"
        )


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    with open_checkpoint(path) as file:
        if not file.has_state:
            return {name: file.tensor(name) for name in file.names}
        state = file.structure("state")
        model = state.get("model") if isinstance(state, dict) else None
        if model is None:
            raise CheckpointError(f"{path}: a checkpoint without model weights")
        return _flat_weights(decode(model, file.tensor, f"{path}: entry 'model'"), path)


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # the unpickler fails in many ways on damaged bytes
        refused = _refused_content(error)
        if refused is None:
            raise CheckpointError(_damaged(path, "a torch checkpoint", error)) from error
        raise CheckpointError(
            f"{path}: refused, because it is a pickle that wants to run or build {refused}, not "
            "only tensors and plain values; nothing was executed. If you trust where it comes "
            "from, load it where it was made and save the bare weights: "
            "torch.save(model.state_dict(), 'weights.pth')"
        ) from error


def _refused_content(error: Exception) -> str | None:
    """What torch's unpickler would not run or build; None for other failures."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    name = re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported class ([\w.]+)", str(error))
    if name:
        return f"`{name.group(1) or name.group(2)}`"
    operand = re.search(r"Unsupported operand (\d+)", str(error))
    return f"objects of Python (pickle operation {operand.group(1)})" if operand else None


def _flat_weights(content: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model_state_dict", "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        empty = isinstance(content, Mapping | list | tuple | set) and not content
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}"
            f"{' without entries' if empty else ''}, not named weights: save "
            "model.state_dict(), not one tensor or object"
        )
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"{path}: not a table of weights; these entries are no tensors: {_some(others)}"
        )
    odd = [str(n) for n, x in content.items() if x.layout != torch.strided or x.is_quantized]
    if odd:
        raise CheckpointError(
            f"{path}: {_some(odd)}: sparse or quantised tensors; save dense ones "
            "(x.to_dense(), x.dequantize())"
        )
    if not all(isinstance(name, str) for name in content):
        raise CheckpointError(f"{path}: not a table of weights: some names are no texts")
    return dict(content)


def resolve_checkpoint(name: str | os.PathLike[str], suffixes: Iterable[str] = SUFFIXES) -> Path:
    """The file that `--load NAME` means.

    Args:
        name: a file, or a file without its suffix.
        suffixes: what may be left out, in order of preference.

    Raises:
        CheckpointError: none of them exists; lists every path that was tried.
    """
    text = os.fspath(name)
    tried = [text + end for end in ("", *suffixes)]
    for path in map(Path, tried):
        if path.is_file():
            return path
    here = "" if os.path.isabs(text) else f" in {Path.cwd()}"
    raise CheckpointError(f"no checkpoint {text!r}; tried{here}: {', '.join(tried)}")


def strip_prefix(
    weights: Mapping[str, Tensor], prefix: str = "module.", anywhere: bool = False
) -> dict[str, Tensor]:
    """Names without the prefix that a wrapper such as DataParallel put before them.

    Args:
        weights: name → tensor; names without the prefix stay as they are.
        prefix: with its dot.
        anywhere: also inside a name (`lxrt_encoder.model.module.bert` of LXMERT's `--multiGPU`).

    Raises:
        CheckpointError: two names become the same.
    """
    inner = re.compile(rf"(?:^|(?<=\.)){re.escape(prefix)}")
    result: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        short = inner.sub("", name) if anywhere else name.removeprefix(prefix)
        if short in result:
            raise CheckpointError(f"two weights are called {short!r} without {prefix!r}")
        result[short] = tensor
    return result


READ = "read_from_a_file"  # set on tensors of a model


@dataclass
class LoadReport:
    """What `load_into` did; lists of names in the order of the model or of the file."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # in the model, not in the file
    unexpected: list[str] = field(default_factory=list)  # in the file, not in the model
    mismatched: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)  # of file, of model

    def text(self) -> str:
        """One line of counts, then one line per kind and top component with a few names."""
        shapes = [
            f"{name} {list(file)} instead of {list(model)}"
            for name, (file, model) in self.mismatched.items()
        ]
        kinds = {
            "missing (in the model, not in the file)": self.missing,
            "unexpected (in the file, not in the model)": self.unexpected,
            "of another shape (file instead of model)": shapes,
        }
        lines = [
            f"{len(self.loaded)} loaded, {len(self.missing)} missing, {len(self.unexpected)} "
            f"unexpected, {len(self.mismatched)} of another shape"
        ]
        for kind, names in kinds.items():
            groups: dict[str, list[str]] = defaultdict(list)
            for name in names:
                groups[name.split(".")[0].split(" ")[0]].append(name)
            lines += [
                f"  {kind}: {top} ({len(found)}): {_some(found)}" for top, found in groups.items()
            ]
        return "\n".join(lines)


def load_into(
    model: nn.Module, weights: Mapping[str, Tensor], strict: bool = True, what: str = "weights"
) -> LoadReport:
    """Copy weights into a model, in place.

    A name of the model that the file leaves out counts as loaded if it is tied to one that is
    there. Nothing is copied when an error is raised.

    Args:
        model: receives them, converted to its dtypes and devices.
        weights: name → tensor.
        strict: demand the same names on both sides; otherwise the report says what differs.
        what: name of the weights in messages, usually the file.

    Raises:
        CheckpointError: names differ (`strict`), a shape differs, no name at all fits, weights
            that are tied in the model differ in the file, or numbers that are not finite.
    """
    own = model.state_dict(keep_vars=True)
    report = LoadReport(unexpected=[name for name in weights if name not in own])
    given = {_memory(own[name]) for name in weights if isinstance(own.get(name), Tensor)}
    for name, value in own.items():
        if name not in weights:
            if not isinstance(value, Tensor) or _memory(value) not in given:
                report.missing.append(name)
        elif isinstance(value, Tensor) and value.shape != weights[name].shape:
            report.mismatched[name] = (tuple(weights[name].shape), tuple(value.shape))
        else:
            report.loaded.append(name)
    if report.mismatched or (strict and (report.missing or report.unexpected)):
        raise CheckpointError(f"{what} does not fit the {type(model).__name__}: {report.text()}")
    if own and not report.loaded:
        raise CheckpointError(f"no name in {what} fits the {type(model).__name__}: {report.text()}")
    _check_ties(own, weights, report.loaded, what)
    _check_finite(weights, report.loaded, what)
    model.load_state_dict({name: weights[name] for name in report.loaded}, strict=False)
    mark_read(own[name] for name in report.loaded if isinstance(own[name], Tensor))
    return report


def mark_read(parameters: Iterable[Tensor]) -> None:
    """Note that the values of these come from what was pretrained; see `new_parameters`."""
    for parameter in parameters:
        setattr(parameter, READ, True)


def new_parameters(model: nn.Module, encoder: nn.Module) -> list[str]:
    """Names of trained parameters outside the encoder that no file gave their values: a new head.

    Empty where nothing at all was read from a file.
    """
    inside = {id(p) for p in encoder.parameters()}
    named = dict(model.named_parameters())
    if not any(hasattr(p, READ) for p in named.values()):
        return []
    return [
        name
        for name, p in named.items()
        if p.requires_grad and id(p) not in inside and not hasattr(p, READ)
    ]


def _check_finite(weights: Mapping[str, Tensor], names: list[str], what: str) -> None:
    """A model with one NaN answers every question, with nonsense."""
    for name in names:
        values = weights[name]
        if not values.is_floating_point() or bool(torch.isfinite(values).all()):
            continue
        place = (~torch.isfinite(values)).nonzero()[0].tolist()
        raise CheckpointError(
            f"{what}: tensor {name!r} holds {values[tuple(place)].item():g} at {place}: its "
            "training had diverged, or the file is damaged; use another checkpoint"
        )


def _check_ties(
    own: Mapping[str, Any], weights: Mapping[str, Tensor], names: list[str], what: str
) -> None:
    first: dict[tuple[object, ...], str] = {}
    for name in names:
        if isinstance(own[name], Tensor):
            other = first.setdefault(_memory(own[name]), name)
            if other != name and not torch.equal(weights[name], weights[other]):
                raise CheckpointError(
                    f"{what}: {other!r} and {name!r} have different values, but "
                    "the model has one tensor for both"
                )


def _memory(tensor: Tensor) -> tuple[object, ...]:
    empty = tensor.numel() == 0
    return (id(tensor),) if empty else (tensor.device, tensor.data_ptr(), tensor.shape)


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f", … {rest} more" if rest > 0 else "")
