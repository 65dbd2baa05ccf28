"""The tokenizer of a vocab.txt against that of `transformers`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import BertTokenizer

from common.data.tokenizer import Tokenizer, packaged_bert_folder, small_vocabulary
from common.errors import ConfigError

SENTENCES = [
    "What color is the shape?",
    "WHAT colour... is (the) Shape's edge-length?!",
    "Café naïve Ünïcode ŁÓDŹ İstanbul straße",
    "是什么颜色 blue 色",
    "a [MASK] is [SEP] not [CLS] a [mask]",
    "tab\tnew\nline\u00a0space\u200bzero\x00null\ufffd",
    "x" * 120 + " unaffable " + "1234567890" * 3,
    "🙂 emoji ½ ² ﬁ",
    "",
    " ",
]


def folder_of(kind: str, folder: Path) -> Path:
    """A folder with a vocab.txt and nothing else; or with a tokenizer.json, which pads."""
    packaged = packaged_bert_folder()
    if kind != "small" and packaged is None:
        pytest.skip("the package with a vocabulary of BERT is not installed")
    if kind == "packaged":
        return packaged
    text = (
        (packaged / "vocab.txt").read_text(encoding="utf-8")
        if kind == "BERT"
        else "\n".join(small_vocabulary(["what color is the shape", "blue"])) + "\n"
    )
    (folder / "vocab.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", ["BERT", "small", "packaged"])
@pytest.mark.parametrize("longest", [5, 20, 400])
def test_pieces_numbers_and_segments_are_those_of_transformers(kind, longest, tmp_path):
    folder = folder_of(kind, tmp_path)
    ours, theirs = Tokenizer(folder), BertTokenizer.from_pretrained(str(folder))
    assert len(ours) == len(theirs)
    ids = (ours.cls_id, ours.sep_id, ours.mask_id)
    assert ids == (theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id)
    cut = {"truncation": True, "max_length": longest, "padding": True, "return_tensors": "pt"}
    expected = theirs(SENTENCES, **cut)
    found, mask = ours.encode(SENTENCES, longest)
    assert found.tolist() == expected["input_ids"].tolist()
    assert mask.tolist() == expected["attention_mask"].tolist()
    expected = theirs(SENTENCES, SENTENCES[::-1], **cut | {"truncation": "longest_first"})
    pairs = ours.encode_pairs(SENTENCES, SENTENCES[::-1], longest)
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert [x.tolist() for x in pairs] == [expected[name].tolist() for name in names]
    for sentence in SENTENCES:
        pieces = ours.pieces(sentence)
        assert pieces == theirs.tokenize(sentence)
        assert ours.numbers(pieces) == theirs.convert_tokens_to_ids(pieces)
    assert ours.numbers(["no piece"]) == [theirs.unk_token_id]


def test_a_vocabulary_alone_needs_no_transformers(tmp_path, monkeypatch):
    folder = folder_of("small", tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)  # an import of it raises
    assert Tokenizer(folder).pieces("Blue shapes") == ["blue", "shape", "##s"]
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="transformers"):
        Tokenizer(folder)
