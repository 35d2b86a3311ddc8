"""Machines that were given different things are told so."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from sparsedet import comm
from sparsedet.agreement import require_agreement, require_same_start
from sparsedet.config import ConfigError, LazyConfig, find_config


@pytest.fixture
def cfg(tmp_path: Path) -> Any:
    found = LazyConfig.load(find_config("quickstart"))
    for key in ("train_json", "val_json"):
        path = tmp_path / f"{key}.json"
        path.write_text("[]")
        found.dataset[key] = str(path)
    return found


def _second(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    """Another machine, whose first process is the second of all, has other facts."""

    def gather(own: tuple[str, dict[str, Any]]) -> list[Any]:
        return [own, ("node2", copy.deepcopy(own[1]) | change), ("node2", None)]

    monkeypatch.setattr(comm, "all_gather", gather)


def test_equal_machines(cfg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _second(monkeypatch, {})
    require_agreement(cfg)
    monkeypatch.undo()
    require_agreement(cfg)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"torch": "1.0"}, r"torch differs: on \S+ \(process 0\) 2.+, on node2 \(process 1\) 1.0"),
        ({"dataset.val_json": "abc"}, r"dataset\.val_json is not the same file.* with abc\. Copy"),
        ({"config": ["a"]}, r"different configs: .* it says `.+`, on node2 \(process 1\) `a`\."),
    ],
)
def test_what_differs_is_named(
    cfg: Any, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], says: str
) -> None:
    _second(monkeypatch, change)
    with pytest.raises(ConfigError, match=says):
        require_agreement(cfg)


def test_one_process_of_a_machine_reads_what_is_compared(
    cfg: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The annotations of a large set take their time, for each of eight processes."""
    given: list[Any] = []

    def gather(own: Any) -> list[Any]:
        given.append(own)
        return [("node1", {"torch": "1.0"}), own]

    monkeypatch.setattr(comm, "all_gather", gather)
    monkeypatch.setattr(comm, "get_local_rank", lambda: 1)
    require_agreement(cfg)
    assert given[0][1] is None


def test_what_is_compared(cfg: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The content of annotations and every setting, and not where files are."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(comm, "all_gather", lambda own: seen.append(own[1]) or [own])
    require_agreement(cfg)
    cfg.train.output_dir = "elsewhere"
    moved = tmp_path / "moved.json"
    moved.write_text("[]")
    cfg.dataset.val_json = str(moved)
    require_agreement(cfg)
    moved.write_text("[1]")
    require_agreement(cfg)
    cfg.optimizer.lr = 5.0
    require_agreement(cfg)
    assert seen[0] == seen[1]
    assert [key for key in seen[0] if seen[0][key] != seen[2][key]] == ["dataset.val_json"]
    assert "config" in [key for key in seen[0] if seen[2][key] != seen[3][key]]


def test_a_checkpoint_that_one_process_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    require_same_start(None, tmp_path)
    monkeypatch.setattr(comm, "all_gather", lambda own: [own, ("node2", "nothing")])
    require_same_start(None, tmp_path)
    says = r"must be a folder that all machines share .* process 1 on node2 finds nothing\. Copy"
    with pytest.raises(ConfigError, match=says):
        require_same_start(tmp_path / "checkpoint_0000005.pth", tmp_path)
