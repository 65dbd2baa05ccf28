"""What pretraining starts from: random weights, a BERT, or an earlier pretraining snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.data.tokenizer import Tokenizer, has_vocabulary, small_vocabulary
from common.errors import CheckpointError, ConfigError
from common.files import write_bytes
from common.training.checkpoint import load_meta
from common.training.weights import load_into
from lxrt.building import find_vocabulary
from lxrt.hf_folder import is_hf_folder
from lxrt.loading import Say, bert_file, check_fits, load_bert, pretrained_path, read_pretrained
from lxrt.modeling import PretrainingModel
from lxrt.options import WeightOptions
from lxrt.sizes import HOME

BERT = HOME / "data" / "bert-base-uncased"


def check_weights(weights: WeightOptions, from_bert: bool = False) -> None:
    """Refuse flags that contradict each other or name nothing, before any data are read.

    Args:
        from_bert: whether a model without any such flag starts from BERT-base-uncased.
    """
    if weights.load and weights.load_lxmert:
        raise ConfigError("--load and --loadLXMERT both name weights to start from: give one")
    if name := weights.load or weights.load_lxmert:
        pretrained_path(name)
    elif not weights.from_scratch and (weights.bert or from_bert):
        if not weights.bert and not BERT.exists():
            raise ConfigError(
                f"no weights to start from: {BERT} does not exist; give --bert "
                "FOLDER (BERT-base-uncased), --loadLXMERT or --load (a pretraining "
                "snapshot), or --fromScratch for random weights"
            )
        bert_file(weights.bert or BERT)


def earlier_snapshot(weights: WeightOptions) -> dict[str, Any]:
    """What the snapshot named by `--load` or `--loadLXMERT` remembers; empty for upstream's."""
    name = weights.load or weights.load_lxmert
    path = pretrained_path(name) if name else None
    return load_meta(path) if path is not None and path.suffix == ".safetensors" else {}


def make_tokenizer(
    weights: WeightOptions, dataset: str, own_words: Sequence[str] | None, folder: Path, say: Say
) -> Tokenizer:
    """The vocabulary beside the weights, else BERT's, else one of the words of small data.

    Args:
        own_words: sentences whose words make a vocabulary where none is given; None: BERT's does.
        folder: of the run, where that vocabulary is written to.
    """
    given = weights.load or weights.load_lxmert
    beside = given and has_vocabulary(given if is_hf_folder(given) else Path(given).parent)
    if own_words is None or weights.bert or beside:
        paths = WeightOptions(load=given, bert=weights.bert)
        folder = find_vocabulary(paths, dataset, "base", say)
    else:
        text = "\n".join(small_vocabulary(own_words)) + "\n"
        write_bytes(folder / "vocab.txt", text.encode())
    tokenizer = Tokenizer(folder)
    say(f"vocabulary of {len(tokenizer)} word pieces: {tokenizer.vocabulary_file}")
    return tokenizer


def load_start(
    model: PretrainingModel,
    weights: WeightOptions,
    from_bert: bool,
    fits: Mapping[str, Any],
    answers: Sequence[str],
    say: Say,
) -> None:
    """Load what the flags say.

    Args:
        from_bert: whether a model without any such flag starts from BERT-base-uncased.
        fits: the features and the vocabulary in use, see `lxrt.loading.check_fits`.
        answers: of the model's answer head, in order.
    """
    if weights.load:
        load_whole(model, weights.load, fits, answers, say, weights.any_detector)
    elif weights.load_lxmert:
        load_without_answers(model, weights.load_lxmert, fits, say, weights.any_detector)
    elif weights.from_scratch or not (weights.bert or from_bert):
        say("all weights start at random values")
    else:
        load_bert(model.bert, weights.bert or BERT, say, heads=model.cls)


def load_whole(
    model: PretrainingModel,
    name: Path | str,
    fits: Mapping[str, Any],
    answers: Sequence[str],
    say: Say = print,
    any_detector: bool = False,
) -> Path:
    """`--load`: every tensor of a pretraining snapshot, with its heads.

    `fits` and `any_detector` are those of `lxrt.loading.check_fits`.

    Raises:
        CheckpointError: it does not fit exactly, or its answers are not those of this run.
    """
    path = pretrained_path(name)
    check_fits(path, fits, any_detector, say)
    known = load_meta(path).get("answers") if path.suffix == ".safetensors" else None
    if model.answer_head is not None and known is not None and list(known) != list(answers):
        raise CheckpointError(
            f"{path}: its answer head is for {len(known)} answers that are not "
            f"the {len(answers)} of this run in their order; use --loadLXMERT, "
            "which leaves the answer head out"
        )
    try:
        report = load_into(model, read_pretrained(path), what=str(path))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}\n--load needs a snapshot with the same layers and "
            "objectives; --loadLXMERT takes what fits"
        ) from None
    say(f"{path.name}: all {len(report.loaded)} tensors loaded")
    return path


def load_without_answers(
    model: PretrainingModel,
    name: Path | str,
    fits: Mapping[str, Any],
    say: Say = print,
    any_detector: bool = False,
) -> Path:
    """`--loadLXMERT`: a pretraining snapshot, ours or upstream's, without its answer head.

    What only one side has is counted on the screen. `fits` and `any_detector` are those of
    `lxrt.loading.check_fits`.

    Raises:
        CheckpointError: nothing of the encoder is in the file, or a tensor has another shape.
    """
    path = pretrained_path(name)
    check_fits(path, fits, any_detector, say)
    weights = read_pretrained(path)
    answers = [name for name in weights if name.startswith("answer_head.")]
    rest = {name: x for name, x in weights.items() if name not in answers}
    ours = model.state_dict()
    if not any(name.startswith("bert.") for name in rest if name in ours):
        raise CheckpointError(
            f"{path}: not a LXMERT snapshot, none of its {len(weights)} tensors "
            "belongs to the encoder (expected names like bert.encoder.layer.0…)"
        )
    report = load_into(model, rest, strict=False, what=str(path))
    missing = [name for name in report.missing if not name.startswith("answer_head.")]
    say(
        f"{path.name}: {len(report.loaded)} tensors loaded, {len(missing)} of the model not in "
        f"the file, {len(report.unexpected)} of the file not in the model; answer head: "
        f"{len(answers)} tensors of the file left out, "
        f"{'starts at random values' if model.answer_head is not None else 'not trained'}"
    )
    return path
