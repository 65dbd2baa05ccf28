"""The results file of `make bench`: written case by case, read again to go on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.bench.cases import Case
from common.errors import ConfigError, DataError
from common.files import write_json
from common.reading import read_json
from common.runs.backbones import BenchModel, BenchSettings

FORMAT = 1


@dataclass
class BenchFile:
    """What was measured so far.

    Attributes:
        path: of the JSON file.
        settings: of the last run; `digest` is the checksum of what the figures depend on.
        description: of the model; `reference` and `reference_description`: what else is compared.
        machine: processor, threads, clock, versions.
        cases: {case's key: record with the case's fields, `ratio`, `low`, `high`, …}.
        memory: {case's key: record with the case's fields, `peak_rss_bytes`, …}.
        features: of `common.bench.features` and `common.bench.detector`.
        loop: {loop case's key: record of `common.bench.loop`}.
        rates: {precision: operations in a second of a large product of matrices}.
    """

    path: Path
    settings: dict[str, Any]
    digest: str
    description: str
    reference: str
    reference_description: str
    machine: dict[str, Any]
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    features: dict[str, float] = field(default_factory=dict)
    loop: dict[str, dict[str, Any]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        path: Path,
        settings: BenchSettings,
        supplied: BenchModel,
        reference: str,
        machine: Mapping[str, Any],
        overwrite: bool,
    ) -> BenchFile:
        """The file to go on with, or a new one.

        Raises:
            ConfigError: the figures in the file were measured with other settings or elsewhere.
        """
        new = cls(
            path,
            asdict(settings),
            settings.digest(),
            supplied.description,
            supplied.reference_name,
            reference,
            dict(machine),
        )
        if overwrite or not path.exists():
            return new
        old = cls.read(path)
        if (new.digest, new.machine) != (old.digest, old.machine):
            raise ConfigError(
                f"{path} was measured otherwise ({_changes(new, old)}): --overwrite "
                "measures anew, --out FILE writes elsewhere"
            )
        for name in ("cases", "memory", "features", "loop", "rates"):
            setattr(new, name, getattr(old, name))
        return new

    @classmethod
    def read(cls, path: Path) -> BenchFile:
        """Read a results file.

        Raises:
            DataError: there is none, or it is of another format.
        """
        content = read_json(path, "make it with python -m common.bench")
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DataError(
                f"{path} is no results file of this version of python -m common.bench"
                ": measure anew with --overwrite"
            )
        return cls(path=path, **{k: v for k, v in content.items() if k != "format"})

    def write(self) -> None:
        values = {k: v for k, v in self.__dict__.items() if k != "path"}
        write_json(self.path, {"format": FORMAT} | values, indent=1)

    def add_case(self, case: Case, record: Mapping[str, Any]) -> None:
        """`load`: how many processes wanted a core of the machine in the last minute."""
        load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
        self.cases[case.key] = asdict(case) | _rounded(record) | {"load": load}

    def add_memory(self, case: Case, record: Mapping[str, Any]) -> None:
        self.memory[case.key] = asdict(case) | dict(record)

    def add_features(self, record: Mapping[str, float]) -> None:
        self.features = self.features | _rounded(record)

    def forget_failures(self) -> None:
        """Cases that failed count as not measured again."""
        self.cases = {key: record for key, record in self.cases.items() if "error" not in record}

    def get(self, case: Case) -> dict[str, Any] | None:
        """The record of a case, or None if it was not measured, or failed."""
        record = self.cases.get(case.key)
        return None if record is None or "error" in record else record

    def memory_ratio(self, case: Case) -> float | None:
        """Peak memory of a case's process relative to that of `standard`."""
        mine, its = (self.memory.get(c.key) for c in (case, Case("train", "standard")))
        if mine is None or its is None:
            return None
        name = "peak_rss_bytes" if mine["peak_cuda_bytes"] is None else "peak_cuda_bytes"
        return mine[name] / its[name]


def _rounded(record: Mapping[str, Any]) -> dict[str, Any]:
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in record.items()}


def _changes(new: BenchFile, old: BenchFile) -> str:
    mine, its = (file.settings | file.machine for file in (new, old))
    return ", ".join(
        f"{name}: {its.get(name)} there, {value} now"
        for name, value in mine.items()
        if its.get(name) != value and name not in ("shares", "precisions")
    )
