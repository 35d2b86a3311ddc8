"""Loaders whose workers hang, have no room or find no pictures."""

import gc
import logging
import multiprocessing
import os
import re
import resource
import signal
import sys
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sparsedet.data import DatasetError, watching
from sparsedet.data.loader import DetectionDataset, _in_shared_memory
from sparsedet.data.watching import end_without_handles, watched
from sparsedet.engine.faults import explain
from tests.processes import forked


class Numbers(Dataset):
    """At the fourth something else happens."""

    def __init__(self, action) -> None:
        self.action = action

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        if index == 3:
            self.action()
        return {"image": torch.full((2,), index)}


def loader_of(action, **options) -> DataLoader:
    return DataLoader(Numbers(action), num_workers=2, multiprocessing_context="fork", **options)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_LOOK", 0.05)


@forked
def test_nothing_is_changed_where_all_goes_well() -> None:
    found = [int(batch["image"][0, 0]) for batch in watched(loader_of(int), "x", 60.0)]
    assert found == list(range(8))


@pytest.mark.parametrize(
    "action",
    [lambda: time.sleep(600), lambda: os.kill(os.getpid(), signal.SIGSTOP)],
    ids=["sleeps", "stopped"],
)
@forked
def test_a_worker_that_hangs(action) -> None:
    """One that is stopped does not even take signals but one; nothing waits for it afterwards."""
    with pytest.raises(RuntimeError, match=r"timed out after 1\.5 seconds") as caught:
        list(watched(loader_of(action), "dataloader.train", 1.5))
    assert (
        "The worker processes of dataloader.train gave no batch for 1.5 s"
        in explain(caught.value).sentence
    )
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


@forked
def test_other_errors_pass() -> None:
    def fail() -> None:
        raise DatasetError("image file 'x' cannot be read.")

    with pytest.raises(DatasetError, match="Caught DatasetError"):
        list(watched(loader_of(fail), "dataloader.train", 60.0))


def test_a_batch_that_is_long_in_coming_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watching, "_LONG", 0.1)
    caplog.set_level(logging.WARNING)

    def slow():
        for number in range(3):
            time.sleep(0.4)
            yield number

    assert list(watched(slow(), "dataloader.test", 0.2)) == [0, 1, 2]  # no worker to give up
    (said,) = caplog.messages
    assert said.startswith("dataloader.test has given no batch for 0 s")
    caplog.clear()
    monkeypatch.setattr(watching, "_LONG", 10.0)
    assert list(watched(slow(), "dataloader.test", 0.0)) == [0, 1, 2] and not caplog.messages


@forked
def test_a_worker_without_shared_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch tells nobody, and the batch never comes."""
    text = "unable to allocate shared memory(shm) for file </x>: No space left on device (28)"

    def full(self) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # inherited by the workers
    loader = loader_of(int, collate_fn=_in_shared_memory)
    with pytest.raises(RuntimeError, match=re.escape(text)) as caught:
        list(watched(loader, "dataloader.train", 30.0))
    assert explain(caught.value).sentence.startswith("Shared memory (/dev/shm) is full")


@forked
def test_a_worker_without_file_handles_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """And torch, which raises when it sees that, does so for nobody afterwards."""
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))

    loader = loader_of(limit, worker_init_fn=end_without_handles)
    with pytest.raises(OSError, match="Too many open files") as caught:
        list(watched(loader, "dataloader.train", 60.0))
    assert explain(caught.value).sentence.startswith("Too many files are open (the limit is")
    assert not multiprocessing.active_children()
    del caught
    gc.collect()
    assert not unraisable


def test_a_folder_that_is_gone_is_no_broken_picture() -> None:
    calls = []

    def mapper(record: dict, rng: object) -> dict:
        calls.append(record["file_name"])
        raise DatasetError(f"image file {record['file_name']!r} cannot be read (no such file).")

    records = [{"file_name": f"{index}.png"} for index in range(30)]
    dataset = DetectionDataset(records, mapper, replace_broken=True)
    with pytest.raises(
        DatasetError, match=r"20 images in a row .* The last one: image file '4\.png'"
    ):
        dataset[15]
    assert len(calls) == 20
