"""Loaders of any kind, of which the trainer wants batches."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sparsedet.engine.batches import batches_from, epoch_length
from tests.engine.fakes import TinyLoader


class Endless:
    """As detectron2's: it never ends, has no length and begins where it likes."""

    def __iter__(self):
        return ([{"image_id": i}] for i in itertools.count())


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


class Numbers(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index


class Shuffled(torch.utils.data.Sampler):
    """An order that depends on the epoch, as that of torch's DistributedSampler."""

    def __init__(self):
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __len__(self):
        return 4

    def __iter__(self):
        return iter([(place + self.epochs[-1]) % 4 for place in range(4)])


def ids(loader, skipped: int, count: int) -> list:
    batches = itertools.islice(batches_from(loader)(skipped), count)
    return [batch[0]["image_id"] if isinstance(batch, list) else batch for batch in batches]


def test_a_loader_that_can_go_on_does_so(caplog):
    assert ids(TinyLoader(), 3, 2) == [1012, 1016]
    assert not caplog.records


def test_a_loader_without_an_end(caplog):
    assert ids(Endless(), 0, 4) == [0, 1, 2, 3]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert ids(Endless(), 3, 12) == list(range(12))
    assert len(caplog.records) == 1
    assert "(Endless) has no iter_from" in caplog.text and "starts a new epoch" in caplog.text


def test_a_loader_that_ends_is_read_again(caplog):
    assert ids([[{"image_id": 7}], [{"image_id": 8}]], 0, 5) == [7, 8, 7, 8, 7]
    with caplog.at_level(logging.WARNING):
        assert ids([[{"image_id": 7}], [{"image_id": 8}]], 1, 3) == [7, 8, 7]
    assert len(caplog.records) == 1, "once, not in every epoch"


def test_a_sampler_is_told_the_epoch():
    sampler = Shuffled()
    assert ids(DataLoader(Numbers(), batch_size=None, sampler=sampler), 0, 9) == [
        *(0, 1, 2, 3),
        *(1, 2, 3, 0),
        2,
    ]
    sampler.epochs.clear()
    ids(DataLoader(Numbers(), batch_size=None, sampler=sampler), 6, 5)
    assert sampler.epochs == [2, 3], "the broken-off epoch would show again what was seen"


def test_a_loader_without_a_batch_is_refused():
    for loader in ([], iter([[{"image_id": 1}]])):
        with pytest.raises(ValueError, match="must have a batch in every epoch"):
            ids(loader, 0, 3)


def test_lengths():
    assert epoch_length(TinyLoader()) == 5
    assert epoch_length(DataLoader(Numbers(), batch_size=2)) == 2
    assert epoch_length(Endless()) is None
    assert epoch_length(DataLoader(Stream())) is None
