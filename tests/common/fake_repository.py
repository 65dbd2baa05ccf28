"""A folder whose run scripts write results at once, for what starts many runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from common.files import repository_root

FAKE = Path(__file__).parent / "fake_runs.py"


class Repository:
    """A folder with run scripts that write results at once."""

    def __init__(
        self, root: Path, minival: Path, main: Callable[[list[str]], int], runs: str
    ) -> None:
        self.root, self.minival, self.out = root, minival, root / "out"
        self.main, self.runs = main, runs

    def command(self, *arguments: str) -> int:
        """The command with this repository's scripts."""
        return self.main([*arguments, "--out", str(self.out)])

    def calls(self) -> list[str]:
        """What the scripts were called with since the last look."""
        path = self.root / "calls.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def trained(self) -> list[str]:
        """Names of the runs that were started since the last look."""
        return [line.split()[2] for line in self.calls() if line.startswith("train ")]

    def folder(self, name: str) -> Path:
        return self.root / "LXMERT" / "snap" / "vqa" / self.runs / name

    def breaks(self, *parts: str) -> None:
        """Runs with these parts in their names fail from now on."""
        (self.root / "broken.txt").write_text("\n".join(parts))


def make_repository(
    folder: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    main: Callable[[list[str]], int],
    package: str,
    made: type[Repository] = Repository,
) -> Repository:
    """One in a folder, for the command of a package of `common`; data as `easy_vqa_root`."""
    scripts = folder / "LXMERT" / "run"
    scripts.mkdir(parents=True)
    for name, mode in (("vqa_finetune", "train"), ("vqa_test", "test")):
        (scripts / f"{name}.bash").write_text(f'exec "$PYTHON" -S {FAKE} {mode} "$@"\n')
    minival = data / "data" / "easy_vqa" / "minival.json"
    for name, value in (
        ("FAKE_RUNS", folder),
        ("FAKE_MINIVAL", minival),
        ("PYTHONPATH", repository_root()),
    ):
        monkeypatch.setenv(name, str(value))
    for module in ("runs.run_script", f"{package}.command"):
        monkeypatch.setattr(f"common.{module}.repository_root", lambda: folder)
    monkeypatch.setattr("common.data.datasets.repository_root", lambda: data)
    return made(folder, minival, main, package)
