"""Nested training state ↔ JSON plus named tensors.

A checkpoint is one safetensors file: tensors in its body, everything else as JSON in its metadata.
This module translates between a nested Python structure and that pair, without loss:

    {"model": {"head.weight": W}, "optimizer": {"step": 3, "m": M, "betas": (0.9, 0.999)}}
      ↔  {"model": {"head.weight": {"$tensor": "head.weight"}},
          "optimizer": {"step": 3, "m": {"$tensor": "@0/optimizer.m"},
                        "betas": {"$tuple": [0.9, 0.999]}}}
       +  {"head.weight": W, "@0/optimizer.m": M}

Plain JSON stays plain; whatever JSON cannot say is an object with a key that starts with `$`.
Subclasses (`OrderedDict`, named tuples, `torch.Size`, enumerations of int or str, `Parameter`) come
back as the type that they extend.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import CheckpointError

Json = Any
EXACT_INTEGER = 2**53  # beyond it other JSON readers round
MALFORMED = (
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    RuntimeError,
)
BYTES_ONLY = (torch.complex128,)  # dtypes that safetensors has no name for


def as_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """The memory of a contiguous CPU tensor, uint8 `(bytes,)`, without a copy."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def checksum(tensor: Tensor) -> int:
    """CRC-32 of the dtype, shape and bytes of a contiguous CPU tensor."""
    kind = f"{tensor.dtype} {list(tensor.shape)}".encode()
    return zlib.crc32(as_bytes(tensor).data, zlib.crc32(kind))


class StateEncoder:
    """Collects the tensors of a structure while it is turned into JSON.

    A tensor that occurs several times (tied weights: same memory, shape, strides and dtype) is
    stored once; every occurrence refers to it.

    Attributes:
        tensors: name → tensor as it was given (any device, any strides).
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._known: dict[tuple[object, ...], str] = {}

    def encode_state(self, state: Mapping[str, Any]) -> Json:
        """JSON of a whole training state; tensors of its entry `model` keep their own names.

        Raises:
            CheckpointError: something in it is of a type that is not stored.
        """
        weights = state.get("model")
        for name, value in weights.items() if isinstance(weights, Mapping) else ():
            if isinstance(value, Tensor):
                if name == "__metadata__" or not isinstance(name, str):
                    raise CheckpointError(f"model: a tensor cannot be named {name!r}")
                self._store(value, name, f"model.{name}")
        return self.encode(state, "")

    def encode(self, value: Any, path: str) -> Json:
        """JSON of one value; `path` (dotted keys) is for messages and tensor names."""
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if isinstance(value, (np.ndarray, np.generic)):
            return self._array(value, path)
        if isinstance(value, int):
            exact = abs(value) <= EXACT_INTEGER
            return int(value) if exact else {"$int": hex(value)}
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"$float": str(float(value))}
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, (list, tuple)):
            items = [self.encode(item, f"{path}.{i}") for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"$tuple": items}
        raise CheckpointError(
            f"{path or 'state'}: a {type(value).__qualname__} cannot be stored in a checkpoint; "
            "turn it into dict, list, tuple, number, string, tensor or array first"
        )

    def _mapping(self, value: Mapping[Any, Any], path: str) -> Json:
        join = (lambda key: f"{path}.{key}") if path else str
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: self.encode(item, join(key)) for key, item in value.items()}
        return {
            "$items": [
                [self.encode(key, f"key of {path}"), self.encode(item, join(key))]
                for key, item in value.items()
            ]
        }

    def _tensor(self, value: Tensor, path: str) -> Json:
        name = self._known.get(_identity(value))
        if name is None:
            name = f"@{len(self.tensors)}/{path}"
            while name in self.tensors:
                name = f"@{name}"
            self._store(value, name, path)
        if value.dtype in BYTES_ONLY:
            return {
                "$tensor": name,
                "dtype": str(value.dtype).removeprefix("torch."),
                "shape": list(value.shape),
            }
        return {"$tensor": name}

    def _store(self, value: Tensor, name: str, path: str) -> None:
        if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
            raise CheckpointError(
                f"{path}: only dense tensors with values can be stored, not "
                f"{value.layout} on {value.device}"
            )
        identity = _identity(value)
        if identity not in self._known:
            self.tensors[name] = value
            self._known[identity] = name

    def _array(self, value: np.ndarray | np.generic, path: str) -> Json:
        if value.dtype.hasobject or value.dtype.names or isinstance(value, np.ma.MaskedArray):
            raise CheckpointError(
                f"{path}: arrays of type {value.dtype} cannot be stored in a "
                "checkpoint; use numbers"
            )
        name = f"@{len(self.tensors)}/{path}"
        raw = bytearray(np.asarray(value).tobytes())
        self.tensors[name] = (
            torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
        )
        kind = "$array" if isinstance(value, np.ndarray) else "$scalar"
        return {kind: name, "dtype": value.dtype.str, "shape": list(value.shape)}


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors that are the same memory read in the same way; empty ones differ."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return (
        tensor.device,
        tensor.data_ptr(),
        tensor.dtype,
        tensor.shape,
        tensor.stride(),
        tensor.is_conj(),
        tensor.is_neg(),
    )


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: CPU, contiguous, each with memory of its own."""
    ready: dict[str, Tensor] = {}
    memories: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
        memory = value.untyped_storage().data_ptr()
        if memory in memories:  # another part of the same memory
            value = value.clone()
        memories.add(memory)
        as_is = value.dtype not in BYTES_ONLY
        ready[name] = value if as_is else value.reshape(-1).view(torch.uint8)
    return ready


def decode(value: Json, tensor: Callable[[str], Tensor], where: str = "the structure") -> Any:
    """The structure that `StateEncoder.encode` was given.

    Args:
        value: its JSON.
        tensor: name → tensor. It must give the same object for the same name, so that tied
            tensors stay tied.
        where: names it in errors.

    Raises:
        CheckpointError: no such JSON.
    """
    try:
        return _decode(value, tensor)
    except CheckpointError:
        raise
    except (*MALFORMED, RecursionError) as error:
        raise CheckpointError(
            f"{where} is not what this code writes ({type(error).__name__}): it is damaged, or "
            "another program made it; use another checkpoint"
        ) from None


def _decode(value: Json, tensor: Callable[[str], Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensor) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return _decode_tensor(value, tensor(value["$tensor"]))
    if "$array" in value or "$scalar" in value:
        return _decode_array(value, tensor)
    if "$tuple" in value:
        return tuple(_decode(item, tensor) for item in value["$tuple"])
    if "$items" in value:
        return {_decode(key, tensor): _decode(item, tensor) for key, item in value["$items"]}
    if "$int" in value:
        return int(value["$int"], 16)
    if "$float" in value:
        return float(value["$float"])
    return {key: _decode(item, tensor) for key, item in value.items()}


def _decode_tensor(value: Json, stored: Tensor) -> Tensor:
    if "dtype" not in value:
        return stored
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in BYTES_ONLY}
    return stored.view(dtypes[value["dtype"]]).reshape(value["shape"])


def _decode_array(value: Json, tensor: Callable[[str], Tensor]) -> np.ndarray | np.generic:
    is_array = "$array" in value
    raw = as_bytes(tensor(value["$array" if is_array else "$scalar"])).tobytes()
    dtype = np.dtype(value["dtype"])
    if dtype.hasobject or dtype.names or not dtype.itemsize:
        raise ValueError(f"no numbers: {dtype}")
    array = np.frombuffer(bytearray(raw), dtype=dtype)
    array = array.reshape(value["shape"])
    return array if is_array else array[()]
