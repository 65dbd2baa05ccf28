"""Compare a backbone, or the region detector, with numbers that the original systems computed.

    python -m common.parity --backbone lxmert [--case DIR] [--write OUT.safetensors]
    python -m common.parity --backbone detector

A case is a folder with config.json (its `kind` says what to run), weights.safetensors and
inputs.safetensors as far as its kind needs them and, to compare with, outputs.safetensors. A
backbone's function finds the path of the folder in the config under `folder`. Exits 1 if a tensor
is missing or off.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from common.detector import parity as detector
from common.errors import DataError
from common.files import repository_root
from common.projects import projects
from common.reading import read_json
from common.runs.backbones import Backbone, find_backbone
from common.training.weights import load_weights
from common.voice import spoken

GOLDENS = repository_root() / "tests" / "goldens"
RELATIVE = 1e-5
GRADIENT_RELATIVE = 5e-5
GRAD_STATS_RELATIVE = 1e-2
ABSOLUTE = 1e-7
MASK_FROM = 5000.0
MASK_ABSOLUTE = 2e-3
DETECTOR = "detector"
# Kinds whose tensors may be off by so much whatever their size.
ABSOLUTE_OF = {detector.KIND: detector.absolute_tolerance}
Run = Callable[[dict[str, Any], dict[str, Tensor], dict[str, Tensor], list[str]], dict[str, Tensor]]


@dataclass(frozen=True)
class Compared:
    """What is compared.

    Attributes:
        name: of a backbone, or `DETECTOR`.
        parity: {kind of golden case: how it is run}.
        kind: of a case that does not say it.
    """

    name: str
    parity: Mapping[str, Run]
    kind: str | None = None


def find_compared(name: str) -> Compared:
    """A backbone, or the detector, by its name."""
    if name == DETECTOR:
        return Compared(name, detector.PARITY, detector.KIND)
    backbone = find_backbone(name)
    return Compared(name, backbone.parity)


@dataclass(frozen=True)
class Difference:
    """How one tensor compares: largest absolute and relative difference, and the verdict."""

    name: str
    absolute: float
    relative: float
    passed: bool
    note: str = ""

    def __str__(self) -> str:
        verdict = "ok  " if self.passed else "FAIL"
        return (
            f"{verdict} {self.name:<60} abs {self.absolute:.2e}  rel {self.relative:.2e}"
            f"{'  ' + self.note if self.note else ''}"
        )


def tolerance(name: str, config: dict[str, Any]) -> float:
    """Relative tolerance of a tensor: the case's own, else by what the tensor is."""
    for pattern, value in config.get("tolerances", {}).items():
        if fnmatch(name, pattern):
            return float(value)
    if "grad_stats" in name:
        return GRAD_STATS_RELATIVE
    return GRADIENT_RELATIVE if "grad" in name else RELATIVE


def compare(name: str, ours: Tensor | None, theirs: Tensor, config: dict[str, Any]) -> Difference:
    """Compare a tensor of any shape; entries of 5000 and more are additive masks."""
    if ours is None:
        return Difference(name, float("nan"), float("nan"), False, "missing")
    if ours.shape != theirs.shape:
        return Difference(
            name,
            float("nan"),
            float("nan"),
            False,
            f"shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}",
        )
    if theirs.numel() == 0:
        return Difference(name, 0.0, 0.0, True, "empty")
    gap = (ours.double() - theirs.double()).abs()
    if (allowed := ABSOLUTE_OF.get(config.get("kind", ""))) is not None:
        scale, absolute = theirs.double().abs().max().item(), gap.max().item()
        relative = absolute / scale if scale else absolute
        return Difference(name, absolute, relative, absolute <= allowed(name))
    plain = theirs.double().abs() < MASK_FROM
    scale = theirs.double().abs()[plain].max().item() if plain.any() else 0.0
    absolute = gap[plain].max().item() if plain.any() else 0.0
    passed = absolute <= tolerance(name, config) * scale + ABSOLUTE
    if not plain.all():
        passed = passed and gap[~plain].max().item() <= MASK_ABSOLUTE
    # A comparison with NaN is false, so a NaN on either side fails.
    return Difference(name, absolute, absolute / scale if scale else absolute, passed)


def gradients(
    model: nn.Module, wanted: Sequence[str], prefix: str, listed: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Gradients of parameters after a backward pass; zeros where there is none.

    Args:
        model: with the original's parameter names.
        wanted: names of tensors; those that begin with the prefix name parameters.
        prefix: of the names of gradients.
        listed: parameters whose gradients are meant where none is wanted by name.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = [name.removeprefix(prefix) for name in wanted if name.startswith(prefix)]
    found = {name: parameters[name] for name in names or listed if name in parameters}
    return {
        prefix + name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in found.items()
    }


def find_cases(backbone: Backbone | Compared, root: Path = GOLDENS) -> list[Path]:
    """Folders below `root` that hold a case of a kind that the backbone knows."""
    return [
        path.parent
        for path in sorted(root.rglob("config.json"))
        if read_json(path).get("kind") in backbone.parity
    ]


def run_case(
    backbone: Backbone | Compared, case: Path, write: Path | None = None
) -> list[Difference]:
    """Run one case and compare it with its outputs.safetensors, if there."""
    config = read_json(case / "config.json") | {"folder": str(case)}
    if isinstance(backbone, Compared) and backbone.kind is not None:
        config = {"kind": backbone.kind} | config
    kind = config.get("kind")
    if kind not in backbone.parity:
        raise DataError(
            f"{case / 'config.json'}: kind {kind!r} is not one of {backbone.name}: "
            f"{', '.join(backbone.parity)}"
        )
    path = case / "outputs.safetensors"
    expected = load_weights(path) if path.exists() else {}
    weights = (
        load_weights(case / "weights.safetensors")
        if (case / "weights.safetensors").exists()
        else {}
    )
    inputs = (
        load_weights(case / "inputs.safetensors") if (case / "inputs.safetensors").exists() else {}
    )
    wanted = list(expected) or [f"grad.{name}" for name in config.get("grad_params", [])]
    torch.manual_seed(0)
    found = {
        name: tensor.detach()
        for name, tensor in backbone.parity[kind](config, weights, inputs, wanted).items()
    }
    if expected:
        found = {name: tensor for name, tensor in found.items() if name in expected}
    if write is not None:
        save_file(
            {
                name: (t.to(torch.uint8) if t.dtype == torch.bool else t).contiguous()
                for name, t in found.items()
            },
            write,
        )
    return [
        compare(name, found.get(name), tensor, config) for name, tensor in sorted(expected.items())
    ]


@spoken
def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m common.parity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--backbone", required=True, help=f"one of {', '.join([*projects(), DETECTOR])}"
    )
    parser.add_argument(
        "--case",
        type=Path,
        help="folder of one case; default: all known cases of the backbone under tests/goldens",
    )
    parser.add_argument("--write", type=Path, help="write our tensors to this file")
    options = parser.parse_args(arguments)
    backbone = find_compared(options.backbone)
    cases = [options.case] if options.case else find_cases(backbone)
    if options.write and len(cases) > 1:
        raise DataError(
            f"--write {options.write} holds one case, there are {len(cases)}; "
            "choose one with --case"
        )
    if not cases:
        raise DataError(f"no case of {backbone.name} under {GOLDENS}")
    failed = compared = 0
    for case in cases:
        differences = run_case(backbone, case, options.write)
        print(
            f"{case.name}: "
            + (
                f"{len(differences)} tensors"
                if differences
                else "no outputs.safetensors, nothing to compare"
            )
        )
        compared += len(differences)
        for difference in differences:
            print(f"  {difference}")
        failed += sum(not difference.passed for difference in differences)
    if compared:
        print(f"{failed} tensors are off" if failed else "all tensors agree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
