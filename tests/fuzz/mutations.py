"""Hypothesis strategies that damage real files: their bytes, their values, their arrays.

Every strategy gives the content of a file that is not the original one but could be met: cut off,
copied wrongly, written by another program, edited by hand.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import pickle
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

TOKENS = [
    *(b"\x00", b"\xff", b"\xef\xbb\xbf", b"\n", b"\r\n", b"\t", b'"', b"{", b"[", b"]", b"}"),
    *(b",", b":", b"nan", b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 30, b"\\ud83d", b"null"),
    *(b"true", b"'", b"&a", b"*a", b"!!float x", b"%", b"PK\x03\x04", b"\x80\x02}", b"[" * 600),
]
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, 2**70, 0.5, -2.5, 1e308, float("nan")),
    *(float("inf"), "", " ", "a", "7", "a\0b", "\ud83d", "é", "x" * 3000, "yes/no", "nan"),
    *([], [[]], [None], [1, 2], ["a"], {}, {"a": 1}, {"a": {"b": []}}, [0.1] * 40),
]
ODD_ARRAYS: list[np.ndarray] = [
    np.array(0),
    np.array(-3),
    np.array(2.5),
    np.array(np.nan),
    np.array(np.inf),
    np.array(10**12),
    np.array("x"),
    np.array([1, 2, 3]),
    np.zeros((0, 4), np.float32),
    np.zeros((3, 4), np.float32),
    np.full((3, 4), np.nan, np.float32),
    np.full((3, 6), 1e9),
    np.ones((3, 6), complex),
    np.ones((3, 6), bool),
    np.ones((3, 6), ">f4"),
    np.ones((3, 6), np.longdouble),
    np.ones((3, 6), "U4"),
    np.ones((3, 6), "M8[s]"),
    np.zeros(3, [("a", "f4")]),
    np.ones((2, 2, 2)),
    np.array([[5, 5, 1, 1]] * 3, np.float32),
    np.array([[0.1, 0.1, 0.5, 0.6]] * 3, np.float32),
]


@st.composite
def damaged_bytes(draw: Callable[[Any], Any], content: bytes) -> bytes:
    """One to four changes of the bytes themselves."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.sampled_from((1, 1, 2, 4, 17, 300)))
        how = draw(st.sampled_from(("flip", "set", "cut", "delete", "insert", "again", "zero")))
        if how == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "set" and data:
            data[place] = draw(st.integers(0, 255))
        elif how == "cut":
            del data[place:]
        elif how == "delete":
            del data[place : place + length]
        elif how == "insert":
            data[place:place] = draw(st.sampled_from(TOKENS))
        elif how == "again":
            data[place:place] = data[place : place + length]
        else:
            data[place : place + length] = bytes(len(data[place : place + length]))
    return bytes(data)


@st.composite
def changed_value(draw: Callable[[Any], Any], value: Any) -> Any:
    """A JSON value in which something is replaced, left out, doubled or renamed."""
    changed = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        parent, key, node = None, None, changed
        for _ in range(draw(st.integers(0, 7))):
            if not isinstance(node, dict | list) or not node:
                break
            parent = node
            keys = list(node) if isinstance(node, dict) else range(len(node))
            key = keys[draw(st.integers(0, len(keys) - 1))]
            node = node[key]
        how = draw(st.sampled_from(("replace", "replace", "replace", "remove", "double", "rename")))
        odd = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
        if parent is None:
            changed = odd if how == "replace" else changed
        elif how == "remove":
            del parent[key]
        elif how == "double" and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(node))
        elif how == "rename" and isinstance(parent, dict):
            parent[
                draw(st.sampled_from(("", "x", "answer", "$tuple", "question_id", "\ud83d")))
            ] = parent.pop(key)
        else:
            parent[key] = odd
    return changed


@st.composite
def damaged_json(draw: Callable[[Any], Any], content: bytes) -> bytes:
    """Other values, or other bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged_bytes(content))
    return json.dumps(draw(changed_value(json.loads(content)))).encode()


@st.composite
def damaged_lines(draw: Callable[[Any], Any], content: bytes) -> bytes:
    """Other values in one line of JSON, or other bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged_bytes(content))
    lines = content.split(b"\n")
    place = draw(st.integers(0, len(lines) - 1))
    lines[place] = json.dumps(draw(changed_value(json.loads(lines[place])))).encode()
    return b"\n".join(lines)


@st.composite
def damaged_tsv(draw: Callable[[Any], Any], content: bytes) -> bytes:
    """Other cells, or other bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged_bytes(content))
    rows = [line.split(b"\t") for line in content.splitlines()]
    row = rows[draw(st.integers(0, len(rows) - 1))]
    place = draw(st.integers(0, len(row) - 1))
    arrays = [
        base64.b64encode(x.astype("<f4").tobytes())
        for x in ODD_ARRAYS
        if x.dtype.kind in "fiu" and x.dtype.itemsize <= 8
    ]
    cells = [b"", b"0", b"-1", b"1.5", b"1e3", b"9" * 25, b"\xff", b"x", b"\xc2\xb2", *arrays, *row]
    row[place] = draw(st.sampled_from(cells))
    if draw(st.integers(0, 4)) == 0:
        rows.insert(draw(st.integers(0, len(rows))), rows[draw(st.integers(0, len(rows) - 1))])
    return b"".join(b"\t".join(row) + b"\r\n" for row in rows)


@st.composite
def damaged_npz(draw: Callable[[Any], Any], content: bytes) -> bytes:
    """Other arrays, other names, other bytes."""
    if draw(st.booleans()):
        return draw(damaged_bytes(content))
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name] for name in file.files}
    name = draw(st.sampled_from(sorted(arrays)))
    how = draw(st.integers(0, 5))
    if how == 0:
        del arrays[name]
    elif how == 1:
        arrays[f"{name}2"] = arrays.pop(name)
    else:
        arrays[name] = draw(st.sampled_from(ODD_ARRAYS))
    out = io.BytesIO()
    (np.savez_compressed if draw(st.booleans()) else np.savez)(out, **arrays)
    return out.getvalue()


@st.composite
def damaged_pickle(draw: Callable[[Any], Any], content: bytes) -> bytes:
    """Another value in any protocol, or other bytes. `content` is one of our own pickles."""
    if draw(st.booleans()):
        return draw(damaged_bytes(content))
    changed = draw(changed_value(pickle.loads(content)))
    if isinstance(changed, dict) and changed and draw(st.booleans()):
        key = draw(st.sampled_from(list(changed)))
        changed[key] = draw(st.sampled_from(ODD_ARRAYS))
    return pickle.dumps(changed, draw(st.integers(0, 5)))


@st.composite
def damaged_zip(draw: Callable[[Any], Any], content: bytes) -> bytes:
    """Members with other values, members twice, other bytes."""
    if draw(st.booleans()):
        return draw(damaged_bytes(content))
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = draw(st.sampled_from(sorted(members)))
    members[name] = draw(damaged_json(members[name]))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", draw(st.sampled_from((0, 8)))) as file:
        for member, data in members.items():
            file.writestr(member, data)
    return out.getvalue()


@st.composite
def damaged_safetensors(draw: Callable[[Any], Any], content: bytes) -> bytes:
    """Another header, other bytes, or other metadata with checksums that are right."""
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(damaged_bytes(content))
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    if kind == 1:
        header = draw(changed_value(header))
    else:
        metadata = header["__metadata__"]
        key = draw(st.sampled_from(("state", "meta", "meta")))
        metadata[key] = json.dumps(draw(changed_value(json.loads(metadata[key]))))
        metadata[f"{key}_crc32"] = str(zlib.crc32(metadata[key].encode()))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body
