"""Which checkpoint a run goes on from, and which ones stay."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import torch

from sparsedet.checkpoint import CheckpointError, CheckpointStore
from sparsedet.files import atomic_write


def _checkpoint(value: float) -> dict:
    return {"model": {"w": torch.full((100,), float(value))}}


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """A folder with the checkpoints 1 and 2."""
    store = CheckpointStore(tmp_path)
    for iteration in (1, 2):
        store.save(_checkpoint(iteration), iteration)
    return store


def _last(store: CheckpointStore) -> int:
    last = store.load_last()
    assert last is not None
    return int(last[0]["model"]["w"][0])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((3,), 2.0).numpy().tobytes()) + 4] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "content", [b"", b"checkpoint_9999999.pth\n", b"\xff\xfe\x00", b"/etc/passwd", b"..", None]
)
def test_a_broken_pointer_is_passed_over(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    pointer = store.directory / "last_checkpoint"
    pointer.unlink()
    if content is None:
        pointer.mkdir()
    else:
        pointer.write_bytes(content)
    assert _last(store) == 2
    (message,) = [record.message for record in caplog.records]
    assert str(pointer) in message and "checkpoint_0000002.pth" in message


def test_a_flipped_bit_falls_back_to_the_one_before(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = store.paths()
    _flip(second)
    assert _last(store) == 1
    (message,) = [record.message for record in caplog.records]
    assert (
        f"{second} is damaged" in message and f"an earlier checkpoint instead: {first}" in message
    )


def test_weights_that_are_nan_fall_back_to_the_ones_before(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(_checkpoint(torch.nan), 3)
    assert _last(store) == 2
    assert "checkpoint_0000003.pth has weights that are NaN" in caplog.text


def test_what_keeps_a_checkpoint_from_being_written_is_told(store: CheckpointStore) -> None:
    """torch raises an error of its own, about a position in the file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            store.save({"model": {"w": torch.zeros(100_000)}}, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(store.directory / "checkpoint_0000003.pth")
    assert _last(store) == 2
    assert not list(store.directory.glob(".*.tmp"))


def test_none_that_can_be_read(store: CheckpointStore) -> None:
    for path in store.paths():
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"0000002.*None of the 2 checkpoints"):
        store.load_last()


def test_a_checkpoint_newer_than_the_pointer_was_just_written(store: CheckpointStore) -> None:
    """The process was killed between the two writes."""
    first, _ = store.paths()
    pointer = store.directory / "last_checkpoint"
    pointer.write_text(first.name)
    os.utime(pointer, (1, 1))
    assert _last(store) == 2


def test_a_person_points_to_an_earlier_one(store: CheckpointStore) -> None:
    (store.directory / "last_checkpoint").write_text("checkpoint_0000001.pth")
    assert _last(store) == 1


def test_a_lost_future_is_deleted_before_what_the_run_came_from(tmp_path: Path) -> None:
    """With one kept, the file just written must not be taken for an old one."""
    for kept, left in ((1, [6]), (2, [5, 6]), (3, [5, 6, 10])):
        store = CheckpointStore(tmp_path / str(kept), max_to_keep=kept)
        for iteration in (5, 10):
            CheckpointStore(store.directory).save(_checkpoint(iteration), iteration)
        store.save(_checkpoint(6), 6)
        assert [int(path.stem[-7:]) for path in store.paths()] == left
        assert _last(store) == 6


def test_the_order_is_that_of_the_iterations_and_not_of_the_names(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for value, iteration in ((1, 9_999_998), (2, 9_999_999), (3, 10_000_000)):
        store.save(_checkpoint(value), iteration)
    assert [path.stem[11:] for path in store.paths()] == ["9999999", "10000000"]
    (tmp_path / "last_checkpoint").unlink()
    assert _last(store) == 3


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for name in (".checkpoint_0000001.pth.123.tmp", ".last_checkpoint.77.tmp", "mine.tmp"):
        (tmp_path / name).write_bytes(b"half")
    with atomic_write(tmp_path / "results.json") as file:
        file.write(b"whole")
        store.clean()
        assert len(list(tmp_path.iterdir())) == 2  # mine.tmp, and what is being written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.tmp", "results.json"]
    assert (tmp_path / "results.json").read_bytes() == b"whole"


def test_what_cannot_be_deleted_ends_nothing(store: CheckpointStore) -> None:
    folder = store.directory / "checkpoint_0000000.pth"
    folder.mkdir()
    store.save(_checkpoint(3), 3)
    assert folder.is_dir() and _last(store) == 3
