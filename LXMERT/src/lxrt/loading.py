"""Where LXMERT's weights come from: BERT folders, pretraining snapshots, finetuned snapshots.

Each of the latter two may also be a folder that `transformers` saved (`lxrt.hf_folder`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.errors import CheckpointError
from common.features.origin import nothing_known
from common.training.bert_folder import bert_names, find_bert_weights
from common.training.checkpoint import check_compatible, load_meta
from common.training.weights import (
    SUFFIXES,
    load_into,
    load_weights,
    resolve_checkpoint,
    strip_prefix,
)
from lxrt.answers import read_answers, transfer_answer_head
from lxrt.hf_folder import is_hf_folder, read_hf_folder
from lxrt.modeling import LXRTModel, VQAModel
from lxrt.sizes import SMALL_PRETRAINED

SNAPSHOT_SUFFIXES = ("_LXRT.safetensors", "_LXRT.pth")  # upstream leaves them out
WHERE = (
    "LXMERT's released weights are model_LXRT.pth of the original authors (870 MB); put the "
    "file at {path}. Or start from BERT with random vision and cross layers (--bert FOLDER), "
    "or from random weights (--fromScratch)"
)
WHERE_SMALL = (
    "The small pretrained model comes with the repository; `make pretrain-easy-vqa` "
    "makes it again, or start from random weights: --fromScratch"
)

Say = Callable[[str], None]


def pretrained_path(name: Path | str) -> Path:
    """The file of a pretraining snapshot: `P_LXRT.safetensors`, `P_LXRT.pth` or a full name.

    Or the name itself, if it is a folder of `transformers`.

    Raises:
        CheckpointError: it does not exist; says where it comes from and names `--fromScratch`.
    """
    if is_hf_folder(name):
        return Path(name)
    try:
        return resolve_checkpoint(name, (*SNAPSHOT_SUFFIXES, *SUFFIXES))
    except CheckpointError as error:
        small = Path(name) == SMALL_PRETRAINED
        hint = WHERE_SMALL if small else WHERE.format(path=f"{name}_LXRT.pth")
        raise CheckpointError(f"{error}. {hint}") from None


def finetuned_path(name: Path | str) -> Path:
    """What `--load NAME` means: a file of ours or of upstream's, or a folder of `transformers`.

    Raises:
        CheckpointError: nothing is there; lists every path that was tried.
    """
    if is_hf_folder(name):
        return Path(name)
    try:
        return resolve_checkpoint(name)
    except CheckpointError as error:
        hint = " It is a folder without a config.json, so transformers did not save it either."
        raise CheckpointError(f"{error}.{hint if Path(name).is_dir() else ''}") from None


def read_pretrained(path: Path) -> dict[str, Tensor]:
    """Weights of a pretraining snapshot, ours or upstream's, with or without `module.`."""
    if path.is_dir():
        return read_hf_folder(path).weights()
    return {
        name: tensor.float() for name, tensor in strip_prefix(load_weights(path), "module.").items()
    }


def pretraining_answers(path: Path, data: Path) -> list[str]:
    """The answers of a snapshot's head: from its own metadata, else upstream's all_ans.json."""
    if path.is_dir() and (answers := read_hf_folder(path).answers) is not None:
        return list(answers)
    if path.suffix == ".safetensors":
        meta = load_meta(path)
        if "answers" in meta:
            return list(meta["answers"])
    return read_answers(
        data / "lxmert" / "all_ans.json",
        f"the 9,500 answers of LXMERT's pretraining are needed for the answer head of {path}; "
        "--loadLXMERT loads it without",
        "use --loadLXMERT",
    )


def load_encoder(
    model: VQAModel, weights: dict[str, Tensor], path: Path, strict: bool, say: Say = print
) -> None:
    """Load the encoder (`bert.*`) of a pretraining snapshot.

    Args:
        strict: every parameter of the model must be in the file (`--loadLXMERTQA`); otherwise
            differences are printed (`--loadLXMERT`), but nothing in common is an error.
    """
    ours = model.bert.state_dict()
    theirs = {
        name.removeprefix("bert."): tensor
        for name, tensor in weights.items()
        if name.startswith("bert.")
    }
    common = {name for name in ours if name in theirs}
    if not common:
        raise CheckpointError(
            f"{path}: not a LXMERT snapshot, none of its {len(weights)} tensors "
            "belongs to the encoder (expected names like bert.encoder.layer.0…)"
        )
    missing, unused = sorted(set(ours) - common), sorted(set(theirs) - common)
    if strict and missing:
        raise CheckpointError(
            f"{path}: {len(missing)} parameters of the model are not in the "
            f"file, e.g. {missing[0]}; use as many or fewer layers than the "
            "file has (--llayers, --xlayers, --rlayers), or --loadLXMERT"
        )
    if missing or unused:
        say(
            f"{path.name}: {len(common)} tensors loaded, {len(missing)} of the model not in the "
            f"file, {len(unused)} of the file not in the model"
        )
    load_into(
        model.bert, {name: theirs[name] for name in common}, strict=not missing, what=str(path)
    )


def check_fits(
    path: Path,
    fits: Mapping[str, Any] | None,
    any_detector: bool = False,
    say: Say = lambda line: None,
) -> None:
    """Compare what a snapshot of ours remembers of features and vocabulary with what is used.

    Upstream's files remember nothing: their features are those of its detector, their vocabulary
    is that of BERT-base-uncased.

    Args:
        path: of the snapshot.
        fits: the features and the vocabulary in use; None: nothing is compared.
        any_detector: the features may be of another detector.
        say: where to report to what is worth knowing of them.
    """
    if fits is None:
        return
    if path.is_dir():
        notes = read_hf_folder(path).check_fits(fits, any_detector)
    else:
        meta = load_meta(path) if path.suffix == ".safetensors" else {}
        known = {key: fits[key] for key in fits if key in meta}
        notes = check_compatible(meta, known, path, any_detector)
        if "features" in fits and "features" not in known:
            notes.append(nothing_known(path, fits["features"]))
    for note in notes:
        say(note)


def load_lxmert(
    model: VQAModel,
    name: Path | str,
    fits: Mapping[str, Any] | None = None,
    say: Say = print,
    any_detector: bool = False,
) -> Path:
    """`--loadLXMERT`: the encoder of a pretraining snapshot, not its answer head.

    `fits` and `any_detector` are those of `check_fits`.
    """
    path = pretrained_path(name)
    check_fits(path, fits, any_detector, say)
    load_encoder(model, read_pretrained(path), path, strict=False, say=say)
    return path


def load_lxmert_qa(
    model: VQAModel,
    name: Path | str,
    answers: Sequence[str],
    data: Path,
    fits: Mapping[str, Any] | None = None,
    say: Say = print,
    any_detector: bool = False,
) -> Path:
    """`--loadLXMERTQA`: encoder and answer head of a pretraining snapshot.

    Args:
        answers: of the task, in the order of the model's head.
        data: folder with `lxmert/all_ans.json`, for snapshots that do not carry their answers.
        fits, any_detector: the features and the vocabulary in use, see `check_fits`.
    """
    path = pretrained_path(name)
    check_fits(path, fits, any_detector, say)
    weights = read_pretrained(path)
    load_encoder(model, weights, path, strict=True, say=say)
    prefix = "answer_head.logit_fc."
    source = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    if not source:
        raise CheckpointError(f"{path} has no answer head (answer_head.*); use --loadLXMERT")
    known = pretraining_answers(path, data)
    _check_head(source, model.logit_fc.state_dict(), known, path)
    head, unknown = transfer_answer_head(model.logit_fc.state_dict(), source, answers, known)
    load_into(model.logit_fc, head, what=str(path))
    say(
        f"{path.name}: answer head with {len(answers) - len(unknown)} answers from pretraining, "
        f"{len(unknown)} set to zero"
    )
    return path


def _check_head(
    source: dict[str, Tensor], target: dict[str, Tensor], known: Sequence[str], path: Path
) -> None:
    missing = [name for name in target if name not in source]
    if missing:
        raise CheckpointError(
            f"{path}: the answer head is not whole, answer_head.logit_fc."
            f"{missing[0]} is missing; use --loadLXMERT"
        )
    rows = len(source["3.weight"])
    if rows != len(known):
        raise CheckpointError(
            f"{path}: the answer head has {rows} rows, but the list of its "
            f"answers has {len(known)}; give the lxmert/all_ans.json it was "
            "pretrained with, or use --loadLXMERT"
        )


def bert_file(folder: Path | str) -> Path:
    """The weights in a BERT folder.

    Raises:
        ConfigError: there are none.
    """
    return find_bert_weights(
        folder,
        "give a BERT-base-uncased folder with --bert, or start from "
        "random weights with --fromScratch",
    )


def load_bert(
    model: LXRTModel, folder: Path | str, say: Say = print, heads: nn.Module | None = None
) -> None:
    """Start the language half from a BERT folder: embeddings, language layers, pooler.

    Args:
        folder: with model.safetensors or pytorch_model.bin of a BERT of the same width.
        heads: upstream's `cls` of a pretraining model, which BERT's own heads start.
    """
    path = bert_file(folder)
    weights = bert_names(load_weights(path))
    state = model.state_dict()
    wanted = [
        name
        for name in state
        if not name.startswith(("encoder.x_layers", "encoder.r_layers", "encoder.visn_fc"))
    ]
    missing = [name for name in wanted if name not in weights]
    wrong = [
        name
        for name in wanted
        if name in weights
        and weights[name].shape != state[name].shape
        and not name.endswith("position_embeddings.weight")
    ]
    if missing or wrong:
        name = (missing or wrong)[0]
        shape = tuple(weights[name].shape) if name in weights else "nothing"
        raise CheckpointError(
            f"{path} does not fit the model: {len(missing)} parameters missing, "
            f"{len(wrong)} of another shape, e.g. {name}: {shape} in the file, "
            f"{tuple(state[name].shape)} in the model; give a BERT of the "
            "model's width and vocabulary, with as many layers or more, with "
            "--bert, or start from random weights with --fromScratch"
        )
    rows = state["embeddings.position_embeddings.weight"].shape[0]
    weights["embeddings.position_embeddings.weight"] = weights[
        "embeddings.position_embeddings.weight"
    ][:rows]
    load_into(model, {name: weights[name] for name in wanted}, strict=False, what=str(path))
    say(
        f"{path}: {len(wanted)} tensors of the language half loaded; vision layers, cross layers "
        "and visual encoder start at random values"
    )
    if heads is not None:
        # The decoder is the word embeddings, which are loaded above.
        theirs = {
            name.removeprefix("cls."): x
            for name, x in weights.items()
            if name.startswith("cls.") and name != "cls.predictions.decoder.weight"
        }
        known = {name: x for name, x in theirs.items() if name in heads.state_dict()}
        if known:
            load_into(heads, known, strict=False, what=str(path))
        say(f"{path}: {len(known)} tensors of the heads of masked words and matching loaded")
