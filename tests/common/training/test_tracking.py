"""Tracker: log file, event files, and wandb only when asked for."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from common.errors import ConfigError
from common.training.tracking import Tracker


def read_events(folder: Path) -> list[Event]:
    """Events of all files: records of (length, crc, data, crc)."""
    events = []
    for file in sorted(folder.glob("events*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            events.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 16 + size
    return events


def test_scalars_and_images_reach_the_event_file(tmp_path: Path) -> None:
    Image.new("RGBA", (5, 4), "red").save(tmp_path / "picture.png")
    with Tracker(tmp_path / "run") as tracker:
        tracker.scalars({"train/loss": torch.tensor(0.5), "val/number": None, "lr": 1e-4}, 7)
        tracker.image("decisions", tmp_path / "picture.png", 8)
    values = [
        (event.step, value)
        for event in read_events(tmp_path / "run" / "tensorboard")
        for value in event.summary.value
    ]
    scalars = {
        value.tag: (step, value.simple_value)
        for step, value in values
        if value.HasField("simple_value")
    }
    assert scalars == {"train/loss": (7, 0.5), "lr": (7, pytest.approx(1e-4))}
    (image,) = [value.image for _, value in values if value.HasField("image")]
    assert (image.width, image.height) == (5, 4)


def test_log_prints_and_appends_also_after_a_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for epoch in range(2):
        with Tracker(tmp_path, tensorboard=False) as tracker:
            tracker.log(f"\nEpoch {epoch}: Train 50.00 – é")
            on_disk = (tmp_path / "log.log").read_text(encoding="utf-8")
            assert on_disk.endswith(f"Epoch {epoch}: Train 50.00 – é\n")  # before close
    assert on_disk == "\nEpoch 0: Train 50.00 – é\n\nEpoch 1: Train 50.00 – é\n"
    assert capsys.readouterr().out == on_disk
    assert not (tmp_path / "tensorboard").exists()


def test_a_disabled_tracker_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with Tracker(tmp_path / "run", wandb="online", enabled=False) as tracker:
        tracker.log("line")
        tracker.scalars({"loss": 1.0}, 0)
        tracker.image("x", tmp_path / "missing.png", 0)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_wandb_missing_or_unknown_mode_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        Tracker(tmp_path / "run", wandb="offline")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="'on'; valid: off, offline, online"):
        Tracker(tmp_path, wandb="on")


def test_wandb_gets_config_mode_and_finite_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []
    fake = SimpleNamespace(
        init=lambda **kw: calls.append(("init", kw)),
        finish=lambda: calls.append(("finish", 0)),
        log=lambda values, step: calls.append(("log", (values, step))),
        Image=str,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with Tracker(tmp_path / "v1", tensorboard=False, wandb="offline", config={"lr": 1}) as tracker:
        tracker.scalars({"a": 2, "b": float("nan")}, 3)
    assert [name for name, _ in calls] == ["init", "log", "finish"]
    assert calls[0][1]["mode"] == "offline" and calls[0][1]["config"] == {"lr": 1}
    assert calls[1][1] == ({"a": 2.0}, 3)


def test_a_resumed_run_purges_later_points(tmp_path: Path) -> None:
    with Tracker(tmp_path, resume_step=5) as tracker:
        tracker.scalars({"loss": 1.0}, 5)
    starts = [
        event for event in read_events(tmp_path / "tensorboard") if event.HasField("session_log")
    ]
    assert [event.step for event in starts] == [5]
