"""What an LMDB file's pages say of each other, compared before the C library follows them.

The library maps the file into memory and trusts it: a page number beyond its end, or a length that
is wrong, ends the process. So everything that reading one database touches is compared here first:
both meta pages, the tree's pages with their entries, and the extent of large values. That is less
than a hundredth of a file of features.

A page has 16 bytes of header (number, flags, end of the list of places, start of the entries) and a
list of 2-byte places of entries. An entry has 8 bytes of header (32 bits of length, or 48 of a page
number in the branches of the tree; 16 of flags; 16 of the key's length), the key, and the value or
the number of the first page that it is on. (LMDB 0.9, 64 bits; see mdb.c.)
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError

MAGIC, VERSION = 0xBEEFC0DE, 1
META = struct.Struct("<8x2xH4xIIQQ IHHQQQQQ IHHQQQQQ QQ")
PAGE = struct.Struct("<Q2xHHH")
ENTRY = struct.Struct("<HHHH")
BRANCH, LEAF, META_PAGE = 1, 2, 8
ON_PAGES = 1  # flag of an entry whose value has pages of its own
FIXED_MAP = 1
NO_ROOT = 2**64 - 1
PAGE_SIZES = [1 << bits for bits in range(9, 17)]
MAX_LEVELS, MAX_KEY = 32, 511


@dataclass(frozen=True)
class Tree:
    """The newest state of an LMDB file's main database."""

    page_size: int
    levels: int
    entries: int
    root: int
    last_page: int
    transaction: int


def check_pages(path: Path) -> None:
    """Compare everything of an LMDB file that a reader follows.

    Args:
        path: `data.mdb`, or however the file is called.

    Raises:
        DataError: no LMDB file, cut off, damaged, or one with several values of a key.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            tree = _newest(file.fileno(), path)
            if (tree.last_page + 1) * tree.page_size > size:
                raise DataError(
                    f"{path}: {size:,} bytes, its pages end at "
                    f"{(tree.last_page + 1) * tree.page_size:,}: it is cut off; fetch it again"
                )
            _Walk(file.fileno(), tree).run()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except DataError:
        raise
    except (ValueError, struct.error) as error:
        raise DataError(f"{path}: damaged ({error}); fetch it again") from None


def _newest(file: int, path: Path) -> Tree:
    """The newer one of the two meta pages."""
    first = _meta(os.pread(file, META.size, 0), path)
    second = _meta(os.pread(file, META.size, first.page_size), path)
    if second.page_size != first.page_size:
        raise DataError(f"{path}: damaged (two sizes of a page); fetch it again")
    return second if second.transaction > first.transaction else first


def _meta(data: bytes, path: Path) -> Tree:
    if len(data) < META.size:
        raise DataError(f"{path}: not an LMDB file, or cut off in its first pages")
    flags, magic, version, _, _, *rest = META.unpack(data)
    if magic != MAGIC or not flags & META_PAGE:
        raise DataError(f"{path}: not an LMDB file, or its first pages are damaged")
    page_size, free_flags, main, last_page, transaction = rest[0], rest[1], rest[8:16], *rest[16:]
    if version != VERSION or page_size not in PAGE_SIZES:
        raise DataError(
            f"{path}: an LMDB file of version {version} with pages of {page_size:,} bytes: "
            f"expected version {VERSION} and {PAGE_SIZES[0]} to {PAGE_SIZES[-1]:,} bytes"
        )
    _, main_flags, levels, _, _, _, entries, root = main
    if main_flags or free_flags & FIXED_MAP:
        raise DataError(
            f"{path}: an LMDB file with flags {main_flags:#x}, {free_flags:#x}: several values of "
            "a key, or a fixed place in memory, are not read"
        )
    return Tree(page_size, levels, entries, root, last_page, transaction)


class _Walk:
    """Goes over the tree, page by page; raises ValueError where something is wrong."""

    def __init__(self, file: int, tree: Tree) -> None:
        self._file, self._tree = file, tree
        self._seen: set[int] = set()
        self._entries = 0

    def run(self) -> None:
        tree = self._tree
        if tree.root == NO_ROOT:
            if tree.entries:
                raise ValueError(f"{tree.entries} entries without a tree")
            return
        if not 1 <= tree.levels <= MAX_LEVELS:
            raise ValueError(f"a tree of {tree.levels} levels")
        self._page(tree.root, tree.levels)
        if self._entries != tree.entries:
            raise ValueError(f"{self._entries} entries where {tree.entries} are expected")

    def _page(self, number: int, levels: int) -> None:
        """A page and what is below it; the leaves are on the last level."""
        size = self._tree.page_size
        self._check_extent(number, 1)
        if number in self._seen:
            raise ValueError(f"page {number} is twice in the tree")
        self._seen.add(number)
        data = os.pread(self._file, size, number * size)
        found, flags, lower, upper = PAGE.unpack_from(data)
        if found != number or flags != (LEAF if levels == 1 else BRANCH):
            raise ValueError(f"page {number} is none of the tree")
        if not PAGE.size < lower <= upper <= size or lower % 2:
            raise ValueError(f"page {number}: its entries are outside of it")
        count = (lower - PAGE.size) // 2
        if levels > 1 and count < 2:
            raise ValueError(f"page {number}: a branch of one")
        for place in struct.unpack_from(f"<{count}H", data, PAGE.size):
            if not upper <= place <= size - ENTRY.size:
                raise ValueError(f"page {number}: an entry is outside of it")
            if levels > 1:
                self._branch(data, place, levels)
            else:
                self._leaf(data, place)
        self._entries += count if levels == 1 else 0

    def _branch(self, data: bytes, place: int, levels: int) -> None:
        low, middle, high, key = ENTRY.unpack_from(data, place)
        if place + ENTRY.size + key > len(data):
            raise ValueError("a key goes beyond its page")
        self._page(low | middle << 16 | high << 32, levels - 1)

    def _leaf(self, data: bytes, place: int) -> None:
        low, high, flags, key = ENTRY.unpack_from(data, place)
        length, start = low | high << 16, place + ENTRY.size + key
        if flags not in (0, ON_PAGES) or not 0 < key <= MAX_KEY:
            raise ValueError(f"an entry with flags {flags:#x} and a key of {key} bytes")
        if start + (8 if flags else length) > len(data):
            raise ValueError("an entry goes beyond its page")
        if flags:
            (number,) = struct.unpack_from("<Q", data, start)
            self._check_extent(number, -(-(PAGE.size + length) // len(data)))

    def _check_extent(self, number: int, pages: int) -> None:
        if not 2 <= number <= self._tree.last_page + 1 - pages:
            raise ValueError(f"page {number}: beyond the {self._tree.last_page + 1} pages")
