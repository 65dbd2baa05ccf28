"""Pickles of plain data: values in all protocols; what would run, or fill memory, is refused."""

from __future__ import annotations

import decimal
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DataError
from common.pickles import parse_pickle

PLAIN = [
    *(None, True, False, 0, -5, 300, 2**31, -(2**31), 2**70, 1.5, -0.0, float("inf")),
    *("", "a", "é 日 \\ '\"\n", "x" * 70_000, b"", b"\x80a\n", b"q" * 70_000),
    *([], [1, [2, (3, [])]], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), list(range(3000))),
    *(
        {},
        {"a": 1, 2: b"x", None: [1.5]},
        OrderedDict(b=1, a=[2]),
        {str(i): i for i in range(2000)},
    ),
]
ARRAYS = [
    np.arange(12.0).reshape(3, 4),
    np.asfortranarray(np.arange(12, dtype="f4").reshape(3, 4)),
    np.arange(20, dtype="f2")[::2],
    np.arange(4, dtype=">i4"),
    np.array(3.5),
    np.zeros((0, 4), "f4"),
    np.ones((2, 2), bool),
    np.float32(2.5),
    np.int64(-1),
    np.bool_(True),
    {"x": [np.arange(3, dtype="u1")] * 2, "y": (np.float16(1),)},
]


def same(found: Any, real: Any) -> bool:
    """Equal in value and type; an OrderedDict is read as a dict in its order."""
    if isinstance(real, np.ndarray | np.generic):
        return (
            type(found) is type(real)
            and found.dtype == real.dtype.newbyteorder("=")
            and np.array_equal(found, real)
        )
    if isinstance(real, dict):
        return list(found) == list(real) and all(same(found[k], real[k]) for k in real)
    if isinstance(real, list | tuple):
        return (
            type(found) is type(real)
            and len(found) == len(real)
            and all(same(a, b) for a, b in zip(found, real, strict=True))
        )
    return type(found) is type(real) and repr(found) == repr(real)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_and_arrays_are_read_in_every_protocol(protocol: int) -> None:
    for value in (*PLAIN, *ARRAYS):
        assert same(parse_pickle(pickle.dumps(value, protocol), "p"), value), value


def test_the_names_of_older_and_newer_numpy_mean_the_same() -> None:
    data = pickle.dumps(np.arange(3.0), 2)
    for old, new in (b"numpy._core.", b"numpy.core."), (b"numpy.core.", b"numpy._core."):
        assert same(parse_pickle(data.replace(old, new), "p"), np.arange(3.0))


def test_texts_of_python_2_are_latin_1() -> None:
    for data in (b"\x80\x02U\x02a\xe9q\x00.", b"S'a\\xe9'\np0\n.", b'S"a\\351"\n.'):
        assert parse_pickle(data, "p") == "aé"


def test_an_array_of_python_2_is_read() -> None:
    """As numpy 1.16 of Python 2.7 writes it: all byte strings are texts there."""
    raw = np.array([1.5, -2.0], "<f4").tobytes()
    state = b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ" + b"\xff" * 4
    state += b"J" + b"\xff" * 4 + b"K\x00tb\x89U\x08" + raw + b"tb."
    made = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    assert same(parse_pickle(made + state, "p"), np.array([1.5, -2.0], np.float32))


class Hostile:
    """Pickles itself as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


MODULE = os.system.__module__


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_is_refused_by_its_name_and_not_executed(tmp_path: Path, protocol: int) -> None:
    there = tmp_path / "executed"
    data = pickle.dumps({"features": Hostile(os.system, (f"touch {there}",))}, protocol)
    with pytest.raises(DataError) as error:
        parse_pickle(data, "f.lmdb: entry '1'")
    assert str(error.value) == (
        "f.lmdb: entry '1': refused, because it is a pickle that wants to run or build "
        f"`{MODULE}.system`, not plain data; nothing was executed"
    )
    assert not there.exists()
    pickle.loads(data)
    assert there.exists(), "the pickle would have done it"


OBJECT = np.array([{}, Hostile(os.system, ("true",))], object)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "`os.system`"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "`os.system`"),
        (b"(S'true'\nios\nsystem\n.", "`os.system`"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "`builtins.eval`"),
        (b"cnumpy\nload\n(S'x'\ntR.", "`numpy.load`"),
        (b"c_codecs\nencode\n(S'x'\nS'zip'\ntR.", "`_codecs.encode` of something else"),
        (b"cnumpy\nndarray\n(I9\ntR.", "`numpy.ndarray`"),
        (b"cnumpy\nndarray\n.", "`numpy.ndarray`"),
        (b"cbuiltins\nbytes\n(I9\ntR.", "`bytes` of something"),
        (b"\x80\x02cnumpy\ndtype\n).\x81.", "instruction|cannot be read"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", r"an object of a class \(instruction NEWOBJ\)"),
        (b"\x80\x02}K\x01b.", "a dict with a state"),
        (b"P7\n.", "an object that is kept elsewhere"),
        (b"\x82\x01.", "the extension registry"),
        (b"cos\na b\x1b[31m" + b"x" * 200 + b"\n.", "'os.a b"),
        (b"\x80\x02}()K\x01u.", "a dict with a tuple as a key|cannot be read"),
        (pickle.dumps(OBJECT, 2), r"an array of `numpy.dtype\('O8'\)`"),
        (pickle.dumps(np.zeros(2, "U3"), 3), r"an array of `numpy.dtype\('U3'\)`"),
        (pickle.dumps(np.zeros(2, [("a", "f4")]), 3), r"an array of `numpy.dtype\('V4'\)`"),
        (pickle.dumps(np.zeros(2, "M8[s]"), 3), r"an array of `numpy.dtype\('M8'\)`"),
        (pickle.dumps(np.zeros(2, complex), 5), r"an array of `numpy.dtype\('c16'\)`"),
        (pickle.dumps({1, 2}, 4), r"a set \(instruction EMPTY_SET\)"),
        (pickle.dumps({1, 2}, 2), r"`__builtin__\.set`"),
        (pickle.dumps(1j, 2), "complex`"),
        (pickle.dumps(decimal.Decimal(1), 4), "`decimal.Decimal`"),
        (pickle.dumps({(1, 2): 3}, 4), "a dict with a tuple as a key"),
    ],
)
def test_what_is_not_plain_data_is_refused(data: bytes, wanted: str) -> None:
    with pytest.raises(DataError, match=f"^p: .*{wanted}") as error:
        parse_pickle(data, "p")
    assert len(str(error.value)) < 250 and str(error.value).isprintable()


def nested(levels: int, each: bytes) -> bytes:
    """Lists of the list before."""
    data = b"(]q\x00"
    for level in range(levels):
        data += b"](" + each.replace(b"?", bytes([level])) + b"eq" + bytes([level + 1])
    return data + b"l."


ROW = (
    b"(K\x01K\x04\x85q\x01cnumpy\ndtype\nU\x02f4\x89\x88\x87R(K\x03U\x01<NNNJ\0\0\0\0J\0\0\0\0K\0tb"
)
NEW = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R"
BIG = b"T" + struct.pack("<i", 100_000) + b"a" * 100_000 + b"q\x00"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "byte 0: it breaks off"),
        (b"\x80\x04]", "byte 3: it breaks off"),
        (b"hello", "cannot be read"),
        (b"\x80\x09N.", "protocol 9 is newer"),
        (b"N.N.", "behind its end"),
        (b"NN.", "its end is not its end"),
        (b".", "its end"),
        (b"(.", "refused"),
        (b"R.", "a value is missing"),
        (b"e.", "a mark is missing"),
        (b"h\x07.", "value 7 is used before"),
        (b"K\x01K\x02a.", "items for a int"),
        (b"]K\x01K\x02s.", "for a list"),
        (b"X\xff\xff\xff\x7fabc.", "cannot be read"),
        (b"\x8e" + struct.pack("<Q", 2**60) + b"abc.", "cannot be read"),
        (b"\x95" + struct.pack("<Q", 2**60) + b"N.", "breaks off in a frame"),
        (b"X\x03\0\0\0\xed\xa0\xbd.", "a text that is no Unicode"),
        (b"}X\x03\0\0\0\xed\xa0\xbdNs.", "a text that is no Unicode"),
        (b"\x8b\x00\x02\0\0" + b"\1" * 512 + b".", "an integer of more than 1024 bits"),
        (b"I" + b"9" * 5000 + b"\n.", "cannot be read"),
        (b"S'abc\n.", "without its quotes"),
        (b"]q\x00h\x00a.", "a container that is in itself"),
        (b"]" * 150 + b"a" * 149 + b".", "more than 100 containers in each other"),
        (nested(40, b"h?" * 9), "much larger once everything that it shares is written out"),
        (b"]" + NEW + ROW + b"\x89U\x0f" + bytes(15) + b"tba.", r"15 bytes for an array \(4,\)"),
        (
            b"]" + NEW + ROW.replace(b"K\x04\x85", b"J\xfc\xff\xff\xff\x85") + b"\x89U\0tba.",
            "shape",
        ),
        (b"]" + NEW + ROW.replace(b"f4", b"b1") + b"\x89U\x04\0\1\7\1tba.", "a truth value"),
        (b"]" + NEW + b"a.", "numpy's array"),
        (BIG + b"0N.", "instruction POP"),
        (b"]" + BIG + (b"c_codecs\nencode\nh\x00X\6\0\0\0latin1\x86R" * 9), "larger than itself"),
    ],
)
def test_damage_and_bombs_are_one_error(data: bytes, what: str) -> None:
    with pytest.raises(DataError, match=f"^p: .*{what}"):
        parse_pickle(data, "p")


def test_a_place_of_the_memo_that_is_far_away_takes_no_memory() -> None:
    """pickle.loads would make a table of 2**31 places."""
    data = b"\x80\x02]r\xf0\xff\xff\x7fj\xf0\xff\xff\x7f\x86."
    assert parse_pickle(data, "p") == ([], [])


def test_bytes_that_many_arrays_share_are_not_copied_for_each() -> None:
    shape = b"M\xa8\x61\x85"  # 25,000 x 4 bytes
    row = NEW + ROW.replace(b"K\x04\x85", shape) + b"\x89h\x00tb"
    with pytest.raises(DataError, match="its arrays are larger than itself"):
        parse_pickle(b"(" + BIG + row * 9 + b"l.", "p")
    assert parse_pickle(b"(" + BIG + row + b"l.", "p")[1].shape == (25_000,)


def test_instructions_can_be_limited() -> None:
    data = pickle.dumps([1] * 50, 2)
    assert parse_pickle(data, "p", limit=60) == [1] * 50
    with pytest.raises(DataError, match="more than 50 instructions"):
        parse_pickle(data, "p", limit=50)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject) -> None:
    codes = st.sampled_from([bytes([i]) for i in b"]})(tR.bacNK0q\x85\x86\x87h\x94\x93\x8c\x80U"])
    whole = data.draw(st.one_of(st.binary(max_size=60), st.lists(codes, max_size=30).map(b"".join)))
    try:
        parse_pickle(whole, "p")
    except DataError as error:
        assert str(error).startswith("p: ")
