"""Reading what others wrote: every failure is one `DataError` with file, place and value.

All bytes from elsewhere (JSON, YAML, NPZ, texts, command-line words) come in through here, pictures
through `common.features.pictures`, archives through `common.features.archives`, checkpoints through
`common.training.weights`. Types are compared with a declared schema here (`checked`), so that
nothing behind has to expect anything else; sizes are bounded before memory is taken.
"""

from __future__ import annotations

import functools
import io
import json
import math
import re
import reprlib
import zipfile
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, DataError

Schema = TypeVar("Schema")
Array = NDArray[Any]
MAX_ARRAY_BYTES = 1 << 30  # of an array in an NPZ file
MAX_YAML_NODES = 100_000  # with every alias written out
SHOWN = 60  # characters of a value in a message
_HALF = re.compile("[\ud800-\udfff]")
_MAY_BE_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_shortener = reprlib.Repr()
_shortener.maxlevel, _shortener.maxother = 3, SHOWN
_shortener.maxstring = _shortener.maxlong = SHOWN


def short(value: Any) -> str:
    """A value for a message: at most 60 characters, however large or deep it is."""
    text = _shortener.repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def read_text(path: Path | str, hint: str = "", kind: str = "a text file") -> str:
    """The content of a file of UTF-8 text, without a byte order mark.

    Args:
        path: The file.
        hint: Where the file comes from; added to the error when it is missing.
        kind: What it should be.

    Raises:
        DataError: The file is missing, cannot be read, or is no such text.
    """
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file{'; ' + hint if hint else ''}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8 text: not {kind}") from None
    except (OSError, ValueError) as error:  # a name with a zero byte, for example
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}): {kind} was expected") from None


def read_json(
    path: Path | str,
    hint: str = "",
    replace: Callable[[dict[str, Any]], Any] | None = None,
    schema: type[Schema] | None = None,
) -> Any:
    """Parse a JSON file.

    Args:
        path: The file.
        hint: Where the file comes from; added to the error when it is missing.
        replace: Called with every object as soon as it is read; what it returns takes its place.
        schema: What the value must be, see `checked`.

    Raises:
        DataError: The file is missing, is no JSON (with line and column), for example because a
            download broke off, or not what the schema says.
    """
    value = parse_json(read_text(path, hint, "a JSON file"), str(path), replace)
    return value if schema is None else checked(value, schema, str(path))


def read_json_lines(
    path: Path | str, schema: type[Schema], hint: str = ""
) -> list[tuple[int, Schema]]:
    """Line numbers, from 1, and values of a file with one JSON value a line; empty lines are none.

    Args:
        path: The file.
        schema: What every value must be, see `checked`.
        hint: Where the file comes from; added to the error when it is missing.

    Raises:
        DataError: The file is missing or has no value, a line is no JSON (as where a download broke
            off) or not what the schema says; with file and line.
    """
    found = []
    for number, line in enumerate(read_text(path, hint, "a file of JSON lines").split("\n"), 1):
        if line.strip():
            where = f"{path}: line {number}"
            found.append((number, checked(parse_json(line, where), schema, where)))
    if not found:
        raise DataError(f"{path}: no JSON value in it{'; ' + hint if hint else ''}")
    return found


def parse_json(
    text: str | bytes,
    where: str,
    replace: Callable[[dict[str, Any]], Any] | None = None,
    any_text: bool = False,
) -> Any:
    """The value of a JSON text; `where` names it in errors.

    Args:
        text: UTF-8, perhaps with a byte order mark.
        where: Names the file.
        replace: See `read_json`.
        any_text: Let texts through that are no Unicode.

    Raises:
        DataError: no JSON, nested too deeply, or with a text that is no Unicode.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: byte {error.start} is not UTF-8 text: not a JSON file"
            ) from None
    try:
        value = json.loads(text, object_hook=replace)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}); "
            "the file is truncated or damaged: fetch or write it again"
        ) from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply for data: not a file of this kind") from None
    except ValueError as error:  # e.g. a number of thousands of digits
        raise DataError(f"{where}: not readable as JSON ({error})") from None
    if not any_text and _MAY_BE_HALF.search(text) is not None:
        _check_texts(value, where)
    return value


def is_unicode(text: str) -> bool:
    """Whether a text can be written: not so with half of a character (a lone surrogate) in it."""
    return _HALF.search(text) is None


def _check_texts(value: Any, where: str) -> None:
    for place, text in _texts(value, ""):
        if not is_unicode(text):
            raise DataError(
                f"{where}: {place}: {short(text)}: a code unit without its other half: the text "
                "was cut, or wrongly encoded; write it again"
            )


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every text of a JSON value with its place, such as `[3] (question 17).sent`."""
    if isinstance(value, str):
        yield place or "the text", value
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(item, f"{place}[{number}]")
    elif isinstance(value, Mapping):
        if "question_id" in value:
            place += f" (question {short(value['question_id'])})"
        for key, item in value.items():
            yield f"a key of {place or 'the object'}", key
            yield from _texts(item, f"{place}.{key}" if place else key)


@functools.lru_cache(maxsize=64)
def _adapter(schema: Any) -> Any:
    try:
        from pydantic import TypeAdapter  # late: a machine that only measures may lack it
    except ImportError:
        raise ConfigError("package pydantic is missing: pip install pydantic") from None

    return TypeAdapter(schema)


def checked(value: Any, schema: type[Schema], where: str, way_out: str = "") -> Schema:
    """A parsed value whose types are those of a schema.

    Args:
        value: of JSON, YAML or the like; returned as it is.
        schema: a type, most often a `TypedDict`; keys that it does not name may be there too.
            Whole numbers are numbers, but nothing else is converted.
        where: names the file in the error.
        way_out: what to do, said at the end of the error.

    Raises:
        DataError: another type, with place, value and what was expected.
    """
    adapter = _adapter(cast(Hashable, schema))
    from pydantic import ValidationError

    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]
        ).lstrip(".")
        found = "" if problem["type"] == "missing" else f" is {short(problem['input'])}"
        reason = problem["msg"][:1].lower() + problem["msg"][1:]
        raise DataError(
            f"{where}: {place or 'the whole'}{found}: {reason}{'; ' + way_out if way_out else ''}"
        ) from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply for data: not a file of this kind") from None
    return value


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text of plain data; a key that occurs twice is an error.

    Raises:
        DataError: no YAML (with line and column), a value that is none of its type, more than
            `MAX_YAML_NODES` values once every alias is written out, or nested too deeply.
    """
    import yaml

    class UniqueKeys(yaml.SafeLoader):
        def construct_mapping(
            self, node: yaml.MappingNode, deep: bool = False
        ) -> dict[Hashable, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value != "<<" and key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} occurs twice", key.start_mark
                    )
                seen.add(str(key.value) if isinstance(key, yaml.ScalarNode) else str(id(key)))
            return super().construct_mapping(node, deep)

    try:
        loader = UniqueKeys(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _written_out(node, {}) > MAX_YAML_NODES:
                raise DataError(
                    f"{where}: more than {MAX_YAML_NODES:,} values with every alias written out: "
                    "not a config"
                )
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        problem = error.problem or error.context
        raise DataError(f"{where}: {place}not valid YAML: {problem}") from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply for data: not a file of this kind") from None
    except DataError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError) as error:
        raise DataError(f"{where}: not valid YAML: {short(str(error))}") from None


def _written_out(node: Any, known: dict[int, int]) -> int:
    """Nodes of a YAML tree with every alias written out, as far as `MAX_YAML_NODES`."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MAX_YAML_NODES + 1  # of an alias of itself, until the node is counted
    children = node.value if isinstance(node.value, list) else []
    total = 1
    for child in children:
        for part in child if isinstance(child, tuple) else (child,):
            total = min(MAX_YAML_NODES + 1, total + _written_out(part, known))
    known[id(node)] = total
    return total


def read_npz(
    source: Path | str | bytes, where: str, names: Collection[str], limit: int = MAX_ARRAY_BYTES
) -> dict[str, Array]:
    """The arrays of an NPZ file that are wanted and there; nothing pickled is read.

    Args:
        source: The file, or its content.
        where: Names it in errors.
        names: Of the arrays.
        limit: Largest array, bytes.

    Returns:
        Name to array of numbers (or of bytes) in the byte order of this machine.

    Raises:
        DataError: Missing, no NPZ file, damaged, encrypted, an array twice, larger than the limit
            or of something else than numbers.
    """
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            twice = {m.filename for m in members if archive.getinfo(m.filename) is not m}
            if twice:
                raise DataError(f"{where}: has {short(min(twice))} twice: it is damaged")
            wanted = [m for m in members if m.filename.removesuffix(".npy") in names]
            return {
                m.filename.removesuffix(".npy"): _member(archive, m, where, limit) for m in wanted
            }
    except FileNotFoundError:
        raise DataError(f"{where}: no such file") from None
    except (DataError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib and numpy fail in many ways on damaged bytes
        reason = short(str(error) or type(error).__name__).strip("'\"")
        raise DataError(f"{where}: cannot be read as NPZ without pickles ({reason})") from None


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str, limit: int) -> Array:
    if member.file_size > limit:
        raise DataError(
            f"{where}: array {member.filename!r} has {member.file_size:,} bytes: more than "
            f"{limit:,} are not read"
        )
    with archive.open(member) as file:
        content = file.read(member.file_size + 1)
    if len(content) != member.file_size:
        raise DataError(f"{where}: array {member.filename!r} is damaged: its size is another one")
    return parse_npy(content, f"{where}: array {member.filename!r}")


def parse_npy(content: bytes, where: str) -> Array:
    """The array of a .npy file's content.

    Raises:
        DataError: damaged, pickled, or of something else than numbers or bytes.
    """
    stream = io.BytesIO(content)
    shape, fortran, dtype = npy_header(stream, where)
    size = math.prod(shape) * dtype.itemsize
    if size != len(content) - stream.tell():
        raise DataError(
            f"{where}: {len(content) - stream.tell():,} bytes of {shape} x {dtype}, which are "
            f"{size:,}: it is damaged"
        )
    flat = np.frombuffer(content, dtype, offset=stream.tell(), count=math.prod(shape))
    array = flat.reshape(shape, order="F" if fortran else "C")
    return np.asarray(array, dtype=dtype.newbyteorder("="), order="C")


def npy_header(file: BinaryIO, where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type of a .npy file, which is then at its numbers.

    Raises:
        DataError: damaged, or of something else than numbers or bytes.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file)
    except MemoryError:
        raise
    except Exception as error:  # the header is Python text: tokens, numbers, names may be damaged
        reason = short(str(error) or type(error).__name__).strip("'\"")
        raise DataError(f"{where}: damaged .npy header ({reason})") from None
    plain = dtype.kind in "biufS" and dtype.shape == () and dtype.itemsize > 0
    if not plain or any(side < 0 for side in shape):
        raise DataError(
            f"{where}: shape {short(shape)} of {dtype}: expected numbers; "
            "pickled objects are not read"
        )
    return shape, fortran, dtype
