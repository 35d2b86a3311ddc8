"""Batches of samples: endless and reproducible for training, exact for evaluation."""

import itertools
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sparsedet import comm
from sparsedet.data.dataset import AnnotatedDataset
from sparsedet.data.errors import DatasetError, StorageError
from sparsedet.data.mapper import DetectionMapper
from sparsedet.data.roots import is_address
from sparsedet.data.validate import warn_once
from sparsedet.data.watching import end_without_handles, watched

_logger = logging.getLogger(__name__)

# Aspect ratios within a quarter of an octave are considered equal.
_ASPECT_BINS_PER_OCTAVE = 4
# Images are grouped by aspect ratio within this many batches.
_GROUPING_WINDOW = 64
# After this many broken pictures in a row, the folder itself is assumed to be broken.
_BROKEN_IN_A_ROW = 20

Sample = dict[str, Any]
Mapper = Callable[[dict[str, Any], random.Random], Sample]


class SampleKey(NamedTuple):
    """Identifies a sample: the record, the epoch, and how often it was drawn in the epoch."""

    record: int
    epoch: int = 0
    repeat: int = 0


class DetectionDataset(Dataset):
    """A map-style data set from a `SampleKey` to its sample.

    The same key gives the same sample in every process: the random source for the mapper is seeded
    with `seed` and the key.

    Args:
        records: the records of an `AnnotatedDataset`.
        mapper: called as `mapper(record, rng)`.
        seed: seed of all randomness in the mapper.
        replace_broken: if an image cannot be decoded, use the sample of the next record, with one
            warning, unless that happens 20 times in a row; otherwise the error is raised. A file
            that cannot be reached, or whose folder is gone, is always an error.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        mapper: Mapper,
        *,
        seed: int = 0,
        replace_broken: bool = False,
    ) -> None:
        self._records = records
        self._mapper = mapper
        self._seed = seed
        self._replace_broken = replace_broken

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, key: SampleKey | int) -> Sample:
        """Makes a sample.

        Raises:
            DatasetError: the image cannot be decoded (nor the next ones, with `replace_broken`).
            StorageError: its file cannot be reached; it may be intact.
        """
        key = SampleKey(key) if isinstance(key, int) else SampleKey(*key)
        rng = random.Random(f"{self._seed}-{key.epoch}-{key.record}-{key.repeat}")
        tries = min(len(self), _BROKEN_IN_A_ROW) if self._replace_broken else 1
        for step in range(tries):
            record = self._records[(key.record + step) % len(self)]
            try:
                return self._mapper(record, rng)
            except DatasetError as error:
                if tries == 1:
                    raise
                _require_folder(record["file_name"])
                if step == tries - 1:
                    raise DatasetError(
                        f"{tries} images in a row cannot be read, so their folder may be gone or "
                        f"damaged. The last one: {error}"
                    ) from error
                warn_once(f"{error} Another image is used instead.")
        raise IndexError(f"DetectionDataset is empty, got {key}.")


def _require_folder(path: str) -> None:
    """Raise a StorageError if the folder of a picture is gone, not only the picture."""
    folder = os.path.dirname(path)
    if not is_address(path) and folder and not os.path.isdir(folder):
        raise StorageError(
            f"image folder {folder!r} no longer exists, so file {path!r} cannot be read. Check the "
            "disk or the mount."
        )


class TrainingBatches:
    """The composition of batches: an endless sequence with random access.

    Each epoch has a new random order of all images, split into batches of similar aspect ratio. The
    few images that do not fill a batch are left out in that epoch, different ones each time. All
    processes have the same global batches and use their part of them, so the samples of an
    iteration do not depend on the number of processes.

    Args:
        aspect_ratios: width / height of each image.
        total_batch_size: images of a batch over all processes. If the data set has fewer images,
            they are repeated within the batch, with different augmentation.
        seed: seed of the order.
        rank: rank of this process.
        world_size: number of processes.

    Raises:
        ValueError: `total_batch_size` cannot be split evenly.
    """

    def __init__(
        self,
        aspect_ratios: Sequence[float],
        total_batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if total_batch_size < 1 or total_batch_size % world_size:
            raise ValueError(
                "TrainLoader.total_batch_size must be a positive multiple of the number of "
                f"processes ({world_size}), got {total_batch_size}. "
                "Set dataloader.train.total_batch_size."
            )
        bins = np.log2(np.asarray(aspect_ratios, dtype=np.float64)) * _ASPECT_BINS_PER_OCTAVE
        self._bins = np.rint(bins).astype(np.int64)
        self._total_batch_size = total_batch_size
        self._seed = seed
        self._part = slice(
            rank * total_batch_size // world_size, (rank + 1) * total_batch_size // world_size
        )
        self._plan: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Batches per epoch, at least 1."""
        return max(1, len(self._bins) // self._total_batch_size)

    def __getitem__(self, iteration: int) -> list[SampleKey]:
        """Keys of this process's samples at an iteration, counted over all epochs from 0."""
        epoch, place = divmod(iteration, len(self))
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, self._make_plan(epoch))
        indices, repeats = self._plan[1][:, place, self._part].tolist()
        return [SampleKey(i, epoch, r) for i, r in zip(indices, repeats, strict=True)]

    def _make_plan(self, epoch: int) -> np.ndarray:
        """Indices and repeats (2, batches, total_batch_size) of an epoch."""
        generator = np.random.default_rng([self._seed % 2**32, epoch])
        wanted = len(self) * self._total_batch_size
        rounds = -(-wanted // len(self._bins))
        order = np.concatenate([generator.permutation(len(self._bins)) for _ in range(rounds)])
        repeats = np.repeat(np.arange(rounds), len(self._bins))
        drawn = np.stack((order, repeats))[:, :wanted]
        window = _GROUPING_WINDOW * self._total_batch_size
        windows = np.arange(wanted) // window
        drawn = drawn[:, np.lexsort((self._bins[drawn[0]], windows))]
        batches = drawn.reshape(2, len(self), self._total_batch_size)
        return batches[:, generator.permutation(len(self))]


class _Endless:
    """A batch sampler for a DataLoader that starts at a given batch."""

    def __init__(self, batches: TrainingBatches, start: int) -> None:
        self._batches = batches
        self._start = start

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return (self._batches[i] for i in itertools.count(self._start))


class TrainLoader:
    """Endless training batches of a data set, each a list of samples.

    The content of a batch depends only on `seed` and its index, not on the number of workers or on
    where the iteration started. `iter_from(k)` resumes exactly where a run stopped after k batches.
    Images that become unreadable are replaced with a warning.

    Args:
        dataset: result of `open_dataset`, with its pictures.
        mapper: makes a sample from a record.
        total_batch_size: images of a batch over all processes.
        num_workers: processes that decode; 0 = decode in this process.
        timeout: seconds to wait for a batch of the workers before the run ends; 0 = no limit. After
            300 s a warning names the loader.
        seed: seed of order and augmentation.
        rank: rank of this process; None = that of `comm`.
        world_size: number of processes; None = that of `comm`.

    Raises:
        DatasetError: the data set has no box to learn, or was opened without its pictures.
        ValueError: `total_batch_size` cannot be split evenly among the processes.
    """

    def __init__(
        self,
        dataset: AnnotatedDataset,
        *,
        mapper: Mapper,
        total_batch_size: int,
        num_workers: int = 0,
        timeout: float = 1800.0,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        _require_pictures(dataset, "TrainLoader")
        if not dataset.has_targets():
            raise DatasetError(
                f"{dataset.source}: there is not a single usable box, so there is nothing to learn "
                "('annotations' is missing or empty, or has only ignore regions or unusable "
                "boxes). Add annotations."
            )
        self.class_names, self.source, self.mapper = dataset.class_names, dataset, mapper
        self.total_batch_size = total_batch_size
        self.dataset = DetectionDataset(dataset.records, mapper, seed=seed, replace_broken=True)
        self.batches = TrainingBatches(
            [record["width"] / record["height"] for record in dataset.records],
            total_batch_size,
            seed=seed,
            rank=comm.get_rank() if rank is None else rank,
            world_size=comm.get_world_size() if world_size is None else world_size,
        )
        self._num_workers, self._timeout = num_workers, _checked(timeout, "train")
        self._start = 0
        if len(self.dataset) < total_batch_size:
            warn_once(
                f"{dataset.source}: it has fewer images ({len(self.dataset)}) than "
                f"total_batch_size={total_batch_size}; images are repeated within a batch."
            )

    def __len__(self) -> int:
        """Batches per epoch, at least 1."""
        return len(self.batches)

    def set_start(self, iteration: int) -> None:
        """Sets the batch, counted over all epochs, at which the next iteration starts."""
        if iteration < 0:
            raise ValueError(f"TrainLoader.set_start iteration must be >= 0, got {iteration}.")
        self._start = iteration

    def iter_from(self, iteration: int) -> Iterator[list[Sample]]:
        """Endless batches from a given batch, counted over all epochs."""
        self.set_start(iteration)
        return iter(self)

    def __iter__(self) -> Iterator[list[Sample]]:
        sampler = _Endless(self.batches, self._start)
        loader = _data_loader(self.dataset, sampler, self._num_workers)
        return watched(loader, "dataloader.train", self._timeout)


class TestLoader:
    """All images of a data set once, in batches of images of equal size.

    Without padding, the result of an image does not depend on its batch. With several processes,
    each process reads a part, without duplicates. Unreadable images are an error, since leaving
    them out would change the metrics.

    Args:
        dataset: result of `open_dataset`, with its pictures; the same as the evaluator's.
        mapper: makes a sample from a record; must be deterministic and have `output_size`.
        batch_size: maximum number of images of a batch in this process.
        num_workers: processes that decode; 0 = decode in this process.
        timeout: as in `TrainLoader`.
        rank: rank of this process; None = that of `comm`.
        world_size: number of processes; None = that of `comm`.

    Raises:
        DatasetError: the data set was opened without its pictures.
        ValueError: `batch_size` is not positive, or the mapper is random.
    """

    __test__ = False  # not a test case, in spite of its name

    def __init__(
        self,
        dataset: AnnotatedDataset,
        *,
        mapper: DetectionMapper,
        batch_size: int = 1,
        num_workers: int = 0,
        timeout: float = 1800.0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(
                f"TestLoader.batch_size must be at least 1, got {batch_size}. "
                "Set dataloader.test.batch_size."
            )
        _require_pictures(dataset, "TestLoader")
        self.class_names, self.source, self.mapper = dataset.class_names, dataset, mapper
        self.dataset = DetectionDataset(dataset.records, mapper)
        rank = comm.get_rank() if rank is None else rank
        world_size = comm.get_world_size() if world_size is None else world_size
        mine = range(rank, len(dataset.records), world_size)
        self.batches = _batches_of_one_size(dataset.records, mine, mapper, batch_size)
        self._num_workers, self._timeout = num_workers, _checked(timeout, "test")

    def __len__(self) -> int:
        """Batches of this process."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Sample]]:
        loader = _data_loader(self.dataset, self.batches, self._num_workers)
        return watched(loader, "dataloader.test", self._timeout)


def _require_pictures(dataset: AnnotatedDataset, loader: str) -> None:
    if dataset.images is None:
        raise DatasetError(
            f"{loader}.dataset must have pictures, but {dataset.source} was opened without them. "
            "Give open_dataset its images=FOLDER."
        )


def _batches_of_one_size(
    records: Sequence[dict], indices: Sequence[int], mapper: DetectionMapper, batch_size: int
) -> list[list[SampleKey]]:
    groups: dict[tuple[int, int], list[SampleKey]] = {}
    for index in indices:
        size = mapper.output_size(records[index]["height"], records[index]["width"])
        if size is None:
            raise ValueError(
                "TestLoader.mapper must be deterministic and have a known output size, got random "
                "transforms. Give ResizeShortSide one short side."
            )
        groups.setdefault(size, []).append(SampleKey(index))
    return [
        keys[begin : begin + batch_size]
        for keys in groups.values()
        for begin in range(0, len(keys), batch_size)
    ]


def _checked(timeout: float, loader: str) -> float:
    if not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise ValueError(
            f"{loader.title()}Loader.timeout must be seconds, or 0 to wait forever, got "
            f"{timeout!r}. Set dataloader.{loader}.timeout."
        )
    return float(timeout)


def _data_loader(dataset: DetectionDataset, batch_sampler: Any, num_workers: int) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        collate_fn=_in_shared_memory,
        worker_init_fn=end_without_handles,
        # images are copied to the device while it computes; only tensors are pinned, not objects
        pin_memory=torch.accelerator.is_available(),
        generator=torch.Generator(),  # else the loader draws from the global random state
    )


def _in_shared_memory(samples: list[Sample]) -> list[Sample]:
    """Let a worker move samples to shared memory, where the main process reads them.

    A worker would also do this by itself, but in a thread that reports no error if there is no
    room; the batch would then never arrive.
    """
    if torch.utils.data.get_worker_info() is not None:
        for sample in samples:
            instances = sample.get("instances")
            fields = instances.get_fields() if instances is not None else {}
            for value in (*sample.values(), *fields.values()):
                tensor = getattr(value, "tensor", value)
                if isinstance(tensor, torch.Tensor):
                    tensor.share_memory_()
    return samples
