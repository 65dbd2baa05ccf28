"""Checkpoint files: exact round trips, and what happens to damaged, foreign and unfit ones.

Failures while saving are in test_checkpoint_faults.py.
"""

from __future__ import annotations

import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from common.errors import CheckpointError, ConfigError
from common.training.checkpoint import (
    check_compatible,
    load_checkpoint,
    load_meta,
    prune_checkpoints,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from common.training.weights import (
    SUFFIXES,
    load_into,
    load_weights,
    resolve_checkpoint,
    strip_prefix,
)

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
    torch.uint16,
    torch.float8_e4m3fn,
)

ENDINGS = ("_LXRT.safetensors", "_LXRT.pth", *SUFFIXES)


def same(a: Any, b: Any) -> bool:
    """Equal in value, type, dtype and shape, all the way down; NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.contiguous().reshape(-1).view(torch.uint8).tolist()
            == b.contiguous().reshape(-1).view(torch.uint8).tolist()
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b if isinstance(a, int) else repr(a) == repr(b)


def round_trip(path: Path, state: dict, meta: dict | None = None) -> tuple[dict, dict]:
    save_checkpoint(path, state, meta or {})
    return load_checkpoint(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "LAST.safetensors"


def test_every_value_comes_back_as_it_was(file: Path) -> None:
    state = {
        "numbers": [
            0,
            -1,
            2**53,
            2**53 + 1,
            -(2**64),
            10**5000,
            True,
            None,
            0.1,
            -0.0,
            1e-323,
            float("inf"),
            float("-inf"),
            float("nan"),
        ],
        "texts": ["", 'é\n"\\', "\ud800", "$tensor"],
        "keys": {1: "a", "1": "b", "$tuple": [1], (2, "x"): {}, None: (), "": {"": 0}},
        "tuples": ((), (1, (2, [3, (4,)])), [()]),
        "$tensor": "a key, not a reference",
        "arrays": [
            np.arange(6, dtype=">i2").reshape(2, 3),
            np.float32(0.1),
            np.bool_(True),
            np.zeros((0, 3)),
            np.uint64(2**64 - 1),
            np.arange(8).reshape(2, 4).T[1:],
        ],
        "nested": {"a": {"b": [torch.ones(1), {"c": (torch.zeros(2),)}]}},
    }
    meta = {"step": 7, "sizes": {"layers": (9, 5, 5)}, "best": float("-inf")}
    loaded, loaded_meta = round_trip(file, state, meta)
    assert same(loaded, state) and same(loaded_meta, meta) and same(load_meta(file), meta)


def test_every_dtype_shape_and_stride_comes_back(file: Path) -> None:
    torch.manual_seed(0)
    base = torch.randn(3, 4)
    model = {f"{dtype}": (10 * base).abs().to(dtype) for dtype in DTYPES}
    model |= {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "transposed": base.T,
        "expanded": base[:1].expand(5, 4),
        "slice": base[:, 1:3],
        "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "parameter": nn.Parameter(base.clone()),
    }
    loaded, _ = round_trip(file, {"model": model})
    assert list(loaded["model"]) == list(model)
    for name, tensor in model.items():
        assert same(loaded["model"][name], tensor.detach().resolve_conj()), name
    assert not loaded["model"]["parameter"].requires_grad


def test_weights_keep_their_names_for_any_safetensors_tool(file: Path) -> None:
    weights = {"bert.pooler.weight": torch.ones(2, 2), "@1/other": torch.zeros(1)}
    save_checkpoint(file, {"optimizer": {"m": torch.ones(3)}, "model": weights}, {})
    tensors = safetensors.torch.load_file(file)
    assert set(weights) < set(tensors) and len(tensors) == 3
    assert torch.equal(tensors["bert.pooler.weight"], torch.ones(2, 2))
    with safetensors.safe_open(file, "pt") as handle:
        assert handle.metadata()["format"] == "pt"  # transformers asks for it
    assert same(load_weights(file), weights)


def test_tied_weights_are_stored_once_and_come_back_tied(file: Path) -> None:
    table = torch.randn(1000, 8)
    state = {
        "twin": {"copy": table},
        "model": {
            "words": table,
            "decoder": nn.Parameter(table),
            "part": table[:500],
            "empty": torch.zeros(0),
        },
    }
    loaded, _ = round_trip(file, state)
    assert same(loaded["model"]["decoder"], table) and same(loaded["model"]["part"], table[:500])
    assert loaded["model"]["words"] is loaded["model"]["decoder"] is loaded["twin"]["copy"]
    assert file.stat().st_size < 1.6 * table.nbytes + 2000
    assert set(safetensors.torch.load_file(file)) == {"words", "part", "empty"}
    assert list(load_weights(file)) == ["words", "decoder", "part", "empty"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"loop": {"sampler": {1, 2}}}, "loop.sampler: a set cannot"),
        ({"a": [Path("x")]}, r"a\.0: a \w*Path cannot"),
        ({"f": lambda: 0}, "f: a function cannot"),
        ({"a": np.array([object()])}, "a: arrays of type object"),
        ({"model": {"w": torch.eye(2).to_sparse()}}, r"model\.w: only dense"),
        ({"model": {"__metadata__": torch.ones(1)}}, "__metadata__"),
        ({"m": torch.ones(1, device="meta")}, "m: only dense"),
    ],
)
def test_what_cannot_be_stored_is_named_and_the_old_file_stays(
    file: Path, state: dict, message: str
) -> None:
    save_checkpoint(file, {"a": 1}, {})
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(file, state, {})
    assert load_checkpoint(file)[0] == {"a": 1} and len(os.listdir(file.parent)) == 1


def test_subclasses_come_back_as_their_base_and_mode_follows_the_umask(file: Path) -> None:
    old = os.umask(0o027)
    try:
        loaded, _ = round_trip(
            file.parent / "new" / "x.safetensors", {"o": OrderedDict(a=torch.Size([2]))}
        )
    finally:
        os.umask(old)
    assert same(loaded, {"o": {"a": (2,)}})
    assert (file.parent / "new" / "x.safetensors").stat().st_mode & 0o777 == 0o640


def test_random_numbers_continue_after_a_round_trip(file: Path) -> None:
    def draw() -> list[float]:
        return [
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.randn(),
            float(torch.rand(())),
            *torch.randn(3).tolist(),
        ]

    draw()
    state, _ = round_trip(file, {"rng": rng_state()})
    expected = draw()
    draw()
    set_rng_state(state["rng"])
    assert draw() == expected


def damaged_lengths(size: int, header: int) -> list[int]:
    return [0, 1, 7, 8, 9, 8 + header // 2, 8 + header, (8 + header + size) // 2, size - 1]


def test_a_truncated_file_is_an_error_at_every_length(file: Path) -> None:
    save_checkpoint(file, {"model": {"w": torch.randn(50, 50)}}, {"step": 1})
    data = file.read_bytes()
    for length in damaged_lengths(len(data), int.from_bytes(data[:8], "little")):
        file.write_bytes(data[:length])
        for read in (load_checkpoint, load_weights, load_meta):
            with pytest.raises(CheckpointError, match="LAST.safetensors: .*(empty|truncated)"):
                read(file)


def test_changed_bytes_are_an_error_and_never_a_wrong_number(file: Path) -> None:
    state = {"model": {"w": torch.randn(8)}, "step": 12345, "m": torch.ones(2)}
    save_checkpoint(file, state, {"lr": 0.5})
    data = file.read_bytes()
    for position in range(0, len(data), 3):
        file.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        try:
            loaded, meta = load_checkpoint(file)
        except CheckpointError as error:
            assert "LAST.safetensors" in str(error)
        else:
            assert same(loaded, state) and meta == {"lr": 0.5}


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(100)}, tmp_path / "zip.pth")
    torch.save({"w": torch.ones(100)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("zip.pth", "old.bin"):
        path = tmp_path / name
        assert torch.equal(load_weights(path)["w"], torch.ones(100))
        data = path.read_bytes()
        for length in (0, 1, 20, len(data) // 2, len(data) - 30):
            path.write_bytes(data[:length])
            with pytest.raises(CheckpointError, match=name):
                load_weights(path)
    (tmp_path / "text.model").write_text("hello, not a checkpoint")
    with pytest.raises(CheckpointError, match="text.model: not a torch checkpoint"):
        load_weights(tmp_path / "text.model")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_weights(tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "bare.safetensors")
    assert load_weights(tmp_path / "bare.safetensors") == {"w": torch.ones(1)}
    assert load_meta(tmp_path / "bare.safetensors") == {}
    with pytest.raises(CheckpointError, match="weights only.*--load instead of --resume"):
        load_checkpoint(tmp_path / "bare.safetensors")
    save_checkpoint(tmp_path / "no_model.safetensors", {"step": 1}, {})
    with pytest.raises(CheckpointError, match="without model weights"):
        load_weights(tmp_path / "no_model.safetensors")


class Trap:
    """A pickle that would write a file when loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trap = {"w": torch.ones(1), "extra": Trap(tmp_path / "executed")}
    torch.save(trap, tmp_path / "zip.pth")
    torch.save(trap, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.bin").write_bytes(pickle.dumps(trap["extra"], protocol=2))
    for name in ("zip.pth", "old.pth", "bare.bin"):
        with pytest.raises(CheckpointError) as error:
            load_weights(tmp_path / name)
        assert f"{name}: refused" in str(error.value) and "mkdir" in str(error.value)
        assert "nothing was executed" in str(error.value) and "state_dict()" in str(error.value)
    (tmp_path / "new.bin").write_bytes(pickle.dumps(trap["extra"], protocol=4))
    with (
        pytest.warns(UserWarning, match="protocol 4"),
        pytest.raises(CheckpointError, match="new.bin: refused.*objects of Python"),
    ):
        load_weights(tmp_path / "new.bin")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "nest",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"model": w},
        lambda w: {"model": {"state_dict": OrderedDict(w)}, "best": 0.7},
    ],
)
def test_upstream_files_may_nest_their_weights(tmp_path: Path, nest: Any) -> None:
    torch.save(nest({"a.weight": torch.ones(2)}), tmp_path / "x.model")
    assert same(load_weights(tmp_path / "x.model"), {"a.weight": torch.ones(2)})
    torch.save(nest({"a.weight": 3}), tmp_path / "y.model")
    with pytest.raises(CheckpointError, match="y.model: .*no tensors: a.weight"):
        load_weights(tmp_path / "y.model")


def test_load_takes_names_with_and_without_suffix(tmp_path: Path) -> None:
    name = str(tmp_path / "v1.2" / "BEST")
    with pytest.raises(CheckpointError) as error:
        resolve_checkpoint(name, ENDINGS)
    for end in ("", ".safetensors", ".pth", ".model", ".bin", "_LXRT.safetensors", "_LXRT.pth"):
        assert name + end in str(error.value)
    (tmp_path / "v1.2" / "BEST").mkdir(parents=True)
    for end in (".bin", ".pth", ".safetensors", "_LXRT.pth"):
        Path(name + end).touch()
        assert resolve_checkpoint(name, ENDINGS) == Path(name + end)
        assert resolve_checkpoint(name + end) == Path(name + end)
    assert resolve_checkpoint(name) == Path(name + ".safetensors")


def test_prefixes_of_wrappers_are_stripped(tmp_path: Path) -> None:
    one = torch.ones(1)
    assert list(strip_prefix({"module.a": one, "b.module.c": one})) == ["a", "b.module.c"]
    assert list(
        strip_prefix({"module.a": one, "b.module.c": one, "submodule.d": one}, anywhere=True)
    ) == ["a", "b.c", "submodule.d"]
    with pytest.raises(CheckpointError, match="two weights are called 'a'"):
        strip_prefix({"module.a": one, "a": one})


class Tied(nn.Module):
    """A decoder tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 3)
        self.decoder = nn.Linear(3, 5)
        self.decoder.weight = self.words.weight


def test_load_into_copies_and_knows_ties() -> None:
    weights = {"words.weight": torch.randn(5, 3), "decoder.bias": torch.randn(5)}
    model = Tied()
    report = load_into(model, weights)
    assert report.missing == [] and torch.equal(model.decoder.weight, weights["words.weight"])
    weights["words.weight"].zero_()
    assert model.words.weight.abs().sum() > 0
    with pytest.raises(CheckpointError, match="'words.weight' and 'decoder.weight'.*different"):
        load_into(model, weights | {"decoder.weight": torch.ones(5, 3)}, what="golden")
    assert model.words.weight.abs().sum() > 0


def test_load_into_says_which_names_do_not_fit_and_changes_nothing() -> None:
    model = nn.ModuleDict(
        {"bert": nn.Sequential(*(nn.Linear(2, 2) for _ in range(5))), "head": nn.Linear(2, 2)}
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {"bert.0.weight": torch.zeros(2, 2), "cls.a": torch.zeros(1), "cls.b": torch.ones(1)}
    with pytest.raises(CheckpointError) as error:
        load_into(model, weights, what="x.pth")
    assert str(error.value).splitlines() == [
        "x.pth does not fit the ModuleDict: 1 loaded, 11 missing, 2 unexpected, 0 of another shape",
        "  missing (in the model, not in the file): bert (9): bert.0.bias, bert.1.weight, "
        "bert.1.bias, … 6 more",
        "  missing (in the model, not in the file): head (2): head.weight, head.bias",
        "  unexpected (in the file, not in the model): cls (2): cls.a, cls.b",
    ]
    with pytest.raises(CheckpointError, match=r"head\.weight \[3, 2\] instead of \[2, 2\]"):
        load_into(model, {"head.weight": torch.zeros(3, 2)}, strict=False)
    with pytest.raises(CheckpointError, match="no name in weights fits"):
        load_into(model, {"module.head.weight": torch.zeros(2, 2)}, strict=False)
    assert same(dict(model.state_dict()), before)
    report = load_into(model, weights, strict=False)
    assert report.loaded == ["bert.0.weight"] and report.unexpected == ["cls.a", "cls.b"]
    assert model["bert"][0].weight.abs().sum() == 0 and len(report.missing) == 11


def test_a_checkpoint_of_another_run_names_every_difference() -> None:
    meta = {"backbone": "lxmert", "strategy": "standard", "sizes": {"hidden": 64, "layers": (2,)}}
    check_compatible(meta, {"backbone": "lxmert", "sizes": {"hidden": 64}}, "x")
    with pytest.raises(CheckpointError) as error:
        check_compatible(
            meta,
            {"strategy": "SpotTune", "sizes": {"hidden": 32}, "task": "vqa"},
            Path("snap/BEST.safetensors"),
        )
    for part in (
        "snap/BEST.safetensors",
        "strategy is 'standard' in the file, this run has 'SpotTune'",
        "sizes.hidden is 64 in the file, this run has 32",
        "task is not recorded",
        "give a checkpoint",
    ):
        assert part in str(error.value)


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for number in (10, 2, 9, 1):
        (tmp_path / f"vqa-{number:04d}.safetensors").touch()
    (tmp_path / "BEST.safetensors").touch()
    removed = prune_checkpoints(tmp_path, "vqa-*.safetensors", keep=2)
    assert [file.name for file in removed] == ["vqa-0001.safetensors", "vqa-0002.safetensors"]
    assert sorted(os.listdir(tmp_path)) == [
        "BEST.safetensors",
        "vqa-0009.safetensors",
        "vqa-0010.safetensors",
    ]
    assert prune_checkpoints(tmp_path, "none*", keep=1) == []
    with pytest.raises(ConfigError, match="keep 0"):
        prune_checkpoints(tmp_path, "*", keep=0)


def test_a_square_tensor_and_its_transpose_are_two(file: Path) -> None:
    """They are the same memory, read in two ways."""
    x = torch.arange(9.0).view(3, 3)
    save_checkpoint(file, {"a": x, "b": x.T, "c": x}, {})
    found, _ = load_checkpoint(file)
    assert torch.equal(found["a"], x) and torch.equal(found["b"], x.T)
    assert found["c"] is found["a"]
