"""Pickles of plain data, read without running anything that is in them.

A pickle is a program for a small stack machine. The one here knows the instructions that build
plain data, and has none that imports or calls anything: of a name in the pickle only the text is
looked at. What numpy's arrays are made of is recorded and compared before numpy sees it. Memory is
bounded by the pickle's size and the number of its instructions.
"""

from __future__ import annotations

import codecs
import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.reading import is_unicode, short

NEWEST_PROTOCOL = 5
MAX_INSTRUCTIONS = 10_000_000
MAX_DEPTH = 100  # of containers in each other
WRITTEN_OUT = 100  # values per byte of the pickle, with everything shared written out
MAX_BITS = 1024  # of an integer
MAX_SIDES, LONGEST_SIDE = 32, 2**31 - 1  # of an array
ELEMENTS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
ORDERS = ("<", ">", "|", "=")

# The names that a pickle may call, as Python 2 and 3 and numpy 1 and 2 write them.
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
CALLABLE = {
    "collections.OrderedDict": "dict",
    "numpy.dtype": "dtype",
    "numpy.ndarray": "ndarray",
    "_codecs.encode": "encode",
    "builtins.bytes": "bytes",
    "__builtin__.bytes": "bytes",
    **{f"{module}._reconstruct": "array" for module in _MULTIARRAY},
    **{f"{module}.scalar": "scalar" for module in _MULTIARRAY},
    "numpy.core.numeric._frombuffer": "buffer",
    "numpy._core.numeric._frombuffer": "buffer",
}
VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# What other instructions would build, for the message.
BUILDS = {
    **dict.fromkeys(("EMPTY_SET", "ADDITEMS", "FROZENSET"), "a set"),
    **dict.fromkeys(("PERSID", "BINPERSID"), "an object that is kept elsewhere"),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), "an object of the extension registry"),
    **dict.fromkeys(("OBJ", "NEWOBJ", "NEWOBJ_EX"), "an object of a class"),
}


class _DamagedError(Exception):
    """The pickle breaks off or contradicts itself."""


class _RefusedError(Exception):
    """The pickle is more than plain data; says what it wanted."""


@dataclass(frozen=True)
class _Name:
    """What may be called: one of the values of `CALLABLE`."""

    kind: str


@dataclass(eq=False)
class _Dtype:
    """The type of an array's elements."""

    kind: str
    order: str = "="

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.kind)


@dataclass(eq=False)
class _Array:
    """An array, whose content may come later."""

    value: np.ndarray | np.generic | None = None


_MARK = object()


def parse_pickle(data: bytes, where: str, limit: int = MAX_INSTRUCTIONS) -> Any:
    """The value of a pickle of plain data; nothing in it is executed or imported.

    Plain data are dict, OrderedDict (read as a dict in its order), list, tuple, str, bytes (also
    the bytearray of protocol 5), int, float, bool, None, and numpy's arrays and scalars of truth
    values, integers and floats of up to 64 bits, which come in this machine's byte order. Protocols
    0 to 5; the byte strings of Python 2 are read as latin-1 text.

    Args:
        data: The pickle.
        where: Names it in errors.
        limit: Most instructions, about two for a value.

    Raises:
        DataError: it wants to run or build something else, or it is damaged.
    """
    try:
        return _Machine(data).run(limit)
    except MemoryError:
        raise
    except _RefusedError as error:
        raise DataError(
            f"{where}: refused, because it is a pickle that wants to run or build {error}, not "
            "plain data; nothing was executed"
        ) from None
    except Exception as error:  # the readers of instructions fail in many ways on damaged bytes
        reason = short(str(error) or type(error).__name__).strip("'\"")
        raise DataError(f"{where}: cannot be read as a pickle of plain data ({reason})") from None


def read_pickle(path: Path, limit: int = MAX_INSTRUCTIONS) -> Any:
    """The value of a file that is one pickle of plain data; see `parse_pickle`.

    Raises:
        DataError: it is not there, cannot be read, or is none.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}): a pickle is expected"
        ) from None
    return parse_pickle(data, str(path), limit)


def _shown(name: str) -> str:
    plain = name.isprintable() and len(name) <= 60 and is_unicode(name)
    return f"`{name if plain else short(name)}`"


class _Machine:
    """The stack machine, for one pickle."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)
        self._size = len(data)
        # Bytes and items that may still be copied: text to bytes, bytes to an array.
        self._left = 2 * len(data)
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, limit: int) -> Any:
        """Obey every instruction, so many at most, and give what is left at the end."""
        data = self._data
        for _ in range(limit):
            code = data.read(1)
            opcode = OPCODES.get(code.decode("latin-1"))
            if opcode is None:
                what = "it breaks off" if not code else f"{code!r} is no instruction"
                raise _DamagedError(f"byte {max(0, data.tell() - len(code))}: {what}")
            name, argument = opcode.name, None
            if name == "STOP":
                break
            if name == "STRING":
                argument = _python2_text(data)
            elif opcode.arg is not None:
                argument = opcode.arg.reader(data)
            if name in VALUES:
                self._stack.append(argument)
            elif name in CONSTANTS:
                self._stack.append(CONSTANTS[name])
            else:
                self._obey(name, argument)
        else:
            raise _DamagedError(f"more than {limit:,} instructions")
        if data.tell() != self._size or len(self._stack) != 1:
            raise _DamagedError("it goes on behind its end, or its end is not its end")
        return _Plain(self._size).value(self._stack[0], 0)

    def _obey(self, name: str, argument: Any) -> None:
        """One instruction that is not a value by itself."""
        if name in TUPLES:
            self._stack.append(tuple(self._pop(TUPLES[name])))
        elif (action := ACTIONS.get(name)) is not None:
            action(self, argument)
        elif name == "INST":
            raise _RefusedError(_shown(str(argument).replace(" ", ".")))
        else:
            what = BUILDS.get(name, "something by other instructions")
            raise _RefusedError(f"{what} (instruction {name})")

    def _protocol(self, number: int) -> None:
        if number > NEWEST_PROTOCOL:
            raise _DamagedError(f"protocol {number} is newer than {NEWEST_PROTOCOL}")

    def _frame(self, size: int) -> None:
        if size > self._size - self._data.tell():
            raise _DamagedError("it breaks off in a frame")

    # The stack

    def _pop(self, count: int) -> list[Any]:
        """The topmost so many values, in the order in which they came."""
        start = len(self._stack) - count
        if start < 0 or any(value is _MARK for value in self._stack[start:]):
            raise _DamagedError("a value is missing on its stack")
        found = self._stack[start:]
        del self._stack[start:]
        return found

    def _pop_to_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while place >= 0 and self._stack[place] is not _MARK:
            place -= 1
        if place < 0:
            raise _DamagedError("a mark is missing on its stack")
        found = self._stack[place + 1 :]
        del self._stack[place:]
        return found

    def _top(self) -> Any:
        (value,) = self._pop(1)
        self._stack.append(value)
        return value

    def _put(self, place: int | None) -> None:
        self._memo[len(self._memo) if place is None else place] = self._top()

    def _get(self, place: int) -> None:
        if place not in self._memo:
            raise _DamagedError(f"value {place} is used before it is there")
        self._stack.append(self._memo[place])

    def _spend(self, amount: int) -> None:
        """Take memory; a plain pickle has room for both copies of everything in it."""
        self._left -= amount
        if self._left < 0:
            raise _DamagedError("its arrays are larger than itself")

    # Containers

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise _DamagedError(f"items for {_described(target)}")
        target.extend(values)

    def _set(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(values) % 2:
            raise _DamagedError(f"{len(values)} keys and values for {_described(target)}")
        _fill(target, zip(values[::2], values[1::2], strict=True))

    def _new_dict(self, values: list[Any]) -> None:
        self._stack.append({})
        self._set(values)

    # Names and calls

    def _name(self, name: str) -> None:
        if name not in CALLABLE:
            raise _RefusedError(_shown(name))
        self._stack.append(_Name(CALLABLE[name]))

    def _stack_name(self) -> None:
        module, name = self._pop(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise _DamagedError("a name that is no text")
        self._name(f"{module}.{name}")

    def _call(self) -> None:
        called, arguments = self._pop(2)
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise _RefusedError(f"a call of {_described(called)}")
        make: dict[str, Callable[..., Any]] = {
            "dict": self._ordered_dict,
            "dtype": _dtype,
            "encode": self._encode,
            "bytes": bytes if not arguments else _no_bytes,
            "array": _empty_array,
            "scalar": self._scalar,
            "buffer": self._from_buffer,
        }
        if called.kind not in make:
            raise _RefusedError("`numpy.ndarray` by a call")
        self._stack.append(make[called.kind](*arguments))

    def _ordered_dict(self, pairs: Any = ()) -> dict[Any, Any]:
        if not isinstance(pairs, list | tuple):
            raise _DamagedError(f"a dict of {_described(pairs)}")
        self._spend(len(pairs))
        made: dict[Any, Any] = {}
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise _DamagedError(f"a dict of {_described(pair)}")
            _fill(made, [pair])
        return made

    def _encode(self, text: Any, encoding: Any = None) -> bytes:
        """How Python 3 writes bytes in protocols 0 to 2."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise _RefusedError("`_codecs.encode` of something else than latin-1 text")
        self._spend(len(text))
        return text.encode("latin-1")

    def _scalar(self, dtype: Any, raw: Any) -> _Array:
        array = self._array(dtype, (), raw, "C")
        return _Array(array[()])

    def _from_buffer(self, raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
        return _Array(self._array(dtype, shape, raw, order))

    def _build(self) -> None:
        """Give an array or a type its state."""
        target, state = self._pop(2)
        self._stack.append(target)
        if isinstance(target, _Dtype):
            target.order = _byte_order(state)
        elif isinstance(target, _Array) and target.value is None:
            if not isinstance(state, tuple) or len(state) != 5:
                raise _DamagedError(f"an array of {_described(state)}")
            _, shape, dtype, columns_first, raw = state
            if columns_first not in (False, True):
                raise _DamagedError("an array in an unknown order")
            target.value = self._array(dtype, shape, raw, "F" if columns_first else "C")
        else:
            raise _RefusedError(f"{_described(target)} with a state")

    def _array(self, dtype: Any, shape: Any, raw: Any, order: Any) -> np.ndarray:
        """An array after everything that it is made of was compared."""
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or order not in ("C", "F"):
            raise _RefusedError("an array of something else than numbers")
        sides = [side for side in shape if type(side) is int and 0 <= side <= LONGEST_SIDE]
        if len(sides) != len(shape) or len(shape) > MAX_SIDES:
            raise _DamagedError(f"an array of shape {short(shape)}")
        if isinstance(raw, str):
            raw = raw.encode("latin-1")  # of Python 2
        if not isinstance(raw, bytes | bytearray):
            raise _RefusedError(f"an array of {_described(raw)}")
        kind = dtype.numpy()
        if len(raw) != math.prod(sides) * kind.itemsize:
            raise _DamagedError(f"{len(raw):,} bytes for an array {short(shape)} of {kind}")
        self._spend(len(raw))
        if not raw:
            return np.zeros(sides, kind.newbyteorder("="))
        if kind.kind == "b" and max(raw) > 1:
            raise _DamagedError("a truth value that is none")
        flat = np.frombuffer(raw, kind).astype(kind.newbyteorder("="))
        return np.ascontiguousarray(flat.reshape(sides, order=order)).reshape(sides)


ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine._protocol,
    "FRAME": _Machine._frame,
    "MARK": lambda m, _: m._stack.append(_MARK),
    "STRING": lambda m, text: m._stack.append(text),
    "BYTEARRAY8": lambda m, data: m._stack.append(bytes(data)),
    "EMPTY_LIST": lambda m, _: m._stack.append([]),
    "EMPTY_DICT": lambda m, _: m._stack.append({}),
    "LIST": lambda m, _: m._stack.append(m._pop_to_mark()),
    "TUPLE": lambda m, _: m._stack.append(tuple(m._pop_to_mark())),
    "DICT": lambda m, _: m._new_dict(m._pop_to_mark()),
    "APPEND": lambda m, _: m._append(m._pop(1)),
    "APPENDS": lambda m, _: m._append(m._pop_to_mark()),
    "SETITEM": lambda m, _: m._set(m._pop(2)),
    "SETITEMS": lambda m, _: m._set(m._pop_to_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine._put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine._get),
    "GLOBAL": lambda m, name: m._name(name.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda m, _: m._stack_name(),
    "REDUCE": lambda m, _: m._call(),
    "BUILD": lambda m, _: m._build(),
}


@dataclass
class _Plain:
    """Makes the value out of what was recorded: arrays take their places, names are refused."""

    size: int
    """Of the pickle, bytes."""
    known: dict[int, tuple[Any, int]] = field(default_factory=dict)
    """Identity of a container -> what became of it, and values in it, all shared ones written out;
    0 while it is being made."""

    def value(self, found: Any, depth: int) -> Any:
        """The plain value of something on the stack.

        Raises:
            _DamagedError: it is in itself, nested too deeply, or too large once written out.
            _RefusedError: something else than plain data.
        """
        if found is None or isinstance(found, str | bytes | int | float):
            return _checked(found)
        if isinstance(found, _Array) and found.value is not None:
            return found.value
        if not isinstance(found, list | tuple | dict):
            raise _RefusedError(_described(found))
        if id(found) not in self.known:
            if depth == MAX_DEPTH:
                raise _DamagedError(f"more than {MAX_DEPTH} containers in each other")
            self.known[id(found)] = (None, 0)
            self.known[id(found)] = self._container(found, depth)
        made, count = self.known[id(found)]
        if not count:
            raise _DamagedError("a container that is in itself")
        return made

    def _container(self, found: Any, depth: int) -> tuple[Any, int]:
        parts = found.values() if isinstance(found, dict) else found
        values = [self.value(part, depth + 1) for part in parts]
        known = self.known
        inner = sum(known[id(part)][1] for part in parts if isinstance(part, list | tuple | dict))
        count = 1 + len(values) + inner
        if count > WRITTEN_OUT * self.size:
            raise _DamagedError("much larger once everything that it shares is written out")
        if isinstance(found, dict):
            return dict(zip(found, values, strict=True)), count
        return (values if isinstance(found, list) else tuple(values)), count


def _fill(target: dict[Any, Any], pairs: Any) -> None:
    for key, value in pairs:
        if key is not None and not isinstance(key, str | bytes | int | float):
            raise _RefusedError(f"a dict with {_described(key)} as a key")
        target[_checked(key)] = value


def _checked(value: Any) -> Any:
    """A single value, unless it is one that could not be written down."""
    if isinstance(value, str) and not value.isascii() and not is_unicode(value):
        raise _DamagedError("a text that is no Unicode")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise _DamagedError(f"an integer of more than {MAX_BITS} bits")
    return value


def _described(value: Any) -> str:
    """A value on the stack, for a message."""
    if isinstance(value, _Name):
        return _shown(next(name for name, kind in CALLABLE.items() if kind == value.kind))
    if isinstance(value, _Dtype | _Array):
        return "numpy's " + ("type" if isinstance(value, _Dtype) else "array")
    return f"a {type(value).__name__}"


def _python2_text(data: io.BytesIO) -> str:
    """The argument of STRING, as latin-1: a line with a text in Python 2's quotes and escapes."""
    line = data.readline()
    text = line.strip()
    if not line.endswith(b"\n") or len(text) < 2 or text[:1] != text[-1:] or text[:1] not in b"'\"":
        raise _DamagedError("a text without its quotes")
    return codecs.escape_decode(text[1:-1])[0].decode("latin-1")


def _dtype(kind: Any, align: Any = False, copy: Any = True) -> _Dtype:
    kind = kind.decode("latin-1") if isinstance(kind, bytes) else kind
    if not isinstance(kind, str) or kind not in ELEMENTS:
        raise _RefusedError(f"an array of `numpy.dtype({short(kind)})`")
    if not isinstance(align, int) or not isinstance(copy, int):
        raise _DamagedError("a type of unknown form")
    return _Dtype(kind)


def _byte_order(state: Any) -> str:
    """The order of an element's bytes, from a type's state: version, order, and nothing else."""
    if not isinstance(state, tuple) or len(state) < 5:
        raise _DamagedError(f"a type of {_described(state)}")
    order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
    if order not in ORDERS or any(part is not None for part in state[2:5]):
        raise _RefusedError("an array of something else than numbers")
    return str(order)


def _empty_array(kind: Any, shape: Any, code: Any) -> _Array:
    if kind != _Name("ndarray"):
        raise _RefusedError(f"an array as {_described(kind)}")
    return _Array()


def _no_bytes(*arguments: Any) -> bytes:
    raise _RefusedError("`bytes` of something")
