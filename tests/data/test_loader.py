"""Which samples come, in which order, in how many processes, and from where."""

import collections
import itertools
import os
import random

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from sparsedet.data import (
    DatasetError,
    DetectionDataset,
    DetectionMapper,
    DETRAugmentation,
    ResizeShortSide,
    TestLoader,
    TrainingBatches,
    TrainLoader,
    open_dataset,
)

SIZES = [(24, 40), (40, 24), (32, 32)] * 6 + [(24, 40)]


def train_loader(source, **options):
    mapper = DetectionMapper([DETRAugmentation([24, 28, 32], 64)])
    return TrainLoader(
        open_dataset(*source, skip_broken_images=True),
        **{"mapper": mapper, "total_batch_size": 4, **options},
    )


def test_loader(source, **options):
    mapper = DetectionMapper([ResizeShortSide(30, 60)])
    return TestLoader(open_dataset(*source), mapper=mapper, **options)


test_loader.__test__ = False


def take(loader, count, start=0):
    return list(itertools.islice(loader.iter_from(start), count))


def same(first, second):
    assert [s["image_id"] for s in first] == [s["image_id"] for s in second]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)


def test_every_image_at_most_once_an_epoch_and_all_over_time():
    batches = TrainingBatches([1.0] * 19, 4)
    assert len(batches) == 4
    seen = set()
    for epoch in range(12):
        keys = [key for i in range(4) for key in batches[epoch * 4 + i]]
        assert {key.epoch for key in keys} == {epoch}
        records = [key.record for key in keys]
        assert len(set(records)) == 16
        seen |= set(records)
    assert seen == set(range(19))


def test_order_changes_with_epoch_and_seed():
    orders = {
        tuple(key.record for i in range(5) for key in TrainingBatches([1.0] * 20, 4, seed=s)[e + i])
        for s in (0, 1)
        for e in (0, 5)
    }
    assert len(orders) == 4


def test_batches_have_similar_aspect_ratios():
    ratios = np.random.default_rng(0).choice([0.5, 0.66, 1.0, 1.5, 2.0], 1000)
    batches = TrainingBatches(ratios, 8)
    mixed = sum(len({ratios[key.record] for key in batches[i]}) > 1 for i in range(len(batches)))
    assert mixed <= 10
    means = [np.mean([ratios[key.record] for key in batches[i]]) for i in range(len(batches))]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3  # in random order


def test_processes_share_the_global_batch():
    ratios = [0.5, 1.0, 2.0] * 10
    alone = TrainingBatches(ratios, 6, seed=3)
    parts = [TrainingBatches(ratios, 6, seed=3, rank=r, world_size=3) for r in range(3)]
    for i in (0, 4, 7, 23):
        assert alone[i] == [key for part in parts for key in part[i]]
    with pytest.raises(ValueError, match="total_batch_size"):
        TrainingBatches(ratios, 4, world_size=3)


def test_fewer_images_than_the_batch(make_set, caplog):
    loader = train_loader(make_set([(24, 40), (32, 32)]), total_batch_size=6)
    assert len(loader) == 1
    (batch,) = take(loader, 1)
    assert collections.Counter(s["image_id"] for s in batch) == {0: 3, 1: 3}
    shapes = {tuple(s["image"].shape) for i in range(4) for s in take(loader, 1, i)[0]}
    assert len(shapes) > 2  # repeated images are augmented each on its own
    assert "has fewer images (2) than total_batch_size=6" in caplog.text


def test_repeats_of_an_image_in_a_batch_are_drawn_each_on_its_own(make_set):
    dataset = train_loader(make_set([(24, 40), (32, 32)]), total_batch_size=16).dataset
    shapes = {tuple(dataset[(0, 0, repeat)]["image"].shape) for repeat in range(8)}
    assert len(shapes) > 2
    again = dataset[(0, 0, 5)]
    assert torch.equal(again["image"], dataset[(0, 0, 5)]["image"])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_change_nothing(make_set):
    source = make_set(SIZES)
    plain, parallel = (take(train_loader(source, num_workers=n), 6) for n in (0, 2))
    for first, second in zip(plain, parallel, strict=True):
        same(first, second)


def torchvision_mapper():
    return DetectionMapper(
        [
            v2.RandomPhotometricDistort(),
            DETRAugmentation([24, 28, 32], 64),
            v2.RandomRotation(30),
            v2.RandomCrop(16),
        ]
    )


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_torchvision_s_transforms_give_the_same_sample_everywhere(make_set):
    """In any process, whatever was drawn before, and others in the next epoch."""
    source = make_set(SIZES)
    loaders = [train_loader(source, mapper=torchvision_mapper(), num_workers=n) for n in (0, 2)]
    plain = take(loaders[0], 6)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    again = take(loaders[0], 3, 3)
    assert torch.equal(state, torch.get_rng_state())
    for first, second in zip(plain, take(loaders[1], 6), strict=True):
        same(first, second)
    for first, second in zip(plain[3:], again, strict=True):
        same(first, second)
    dataset = loaders[0].dataset
    first, later = dataset[0], dataset[(0, 1, 0)]
    assert not torch.equal(first["image"], later["image"])
    assert torch.equal(dataset[0]["image"], first["image"])


def test_torchvision_s_transforms_drop_classes_with_their_boxes(make_set):
    mapper = DetectionMapper([v2.RandomCrop(30)])
    source = make_set([(100, 100)], boxes=[[0, 0, 20, 20]])
    loader = TrainLoader(open_dataset(*source), mapper=mapper, total_batch_size=1)
    counts = set()
    for (sample,) in take(loader, 30):
        targets = sample["instances"]
        assert targets.image_size == (30, 30) == sample["image"].shape[1:]
        assert len(targets.gt_classes) == len(targets.gt_boxes)
        assert type(targets.gt_boxes.tensor) is type(targets.gt_classes) is torch.Tensor
        counts.add(len(targets))
    assert counts == {0, 1}


@pytest.mark.parametrize(
    "transform", [v2.ToDtype(torch.float32, scale=True), v2.Grayscale(1), v2.ToPILImage()]
)
def test_transforms_that_change_the_format_of_the_image(make_set, transform):
    name = type(transform).__name__
    loader = train_loader(make_set(SIZES[:4]), mapper=DetectionMapper([transform]))
    with pytest.raises(ValueError, match=rf"must keep images uint8 .* take {name} out of"):
        take(loader, 1)


def test_a_start_in_the_middle_gives_the_same_batches(make_set):
    source = make_set(SIZES)
    whole = take(train_loader(source), 11)
    loader = train_loader(source)
    loader.set_start(7)
    for first, second in zip(whole[7:], loader, strict=False):
        same(first, second)
    assert len(loader) == 4
    with pytest.raises(ValueError, match="set_start"):
        loader.set_start(-1)


def test_epochs_and_seeds_augment_anew(make_set):
    source = make_set(SIZES[:4])
    shapes = [
        tuple(sorted((s["image_id"], tuple(s["image"].shape)) for s in take(loader, 1, epoch)[0]))
        for loader in (train_loader(source), train_loader(source, seed=1))
        for epoch in range(3)
    ]
    assert len(set(shapes)) == 6


def test_global_random_state_is_left_alone(make_set):
    loader = train_loader(make_set(SIZES))
    state = torch.get_rng_state()
    take(loader, 2)
    assert torch.equal(state, torch.get_rng_state())


def test_broken_image_found_late_is_replaced_with_a_warning(make_set, caplog):
    annotations, images = make_set(SIZES[:4])
    loader = train_loader((annotations, images))
    with open(os.path.join(images, "2.png"), "wb") as file:
        file.write(b"gone bad")
    (batch,) = take(loader, 1)
    assert sorted(s["image_id"] for s in batch) == [0, 1, 3, 3]
    assert "2.png" in caplog.text
    records = open_dataset(annotations).records
    dataset = DetectionDataset(records, DetectionMapper([]))
    with pytest.raises(DatasetError, match=r"2\.png"):
        dataset[2]


@pytest.mark.parametrize("batch_size", [1, 3, 50])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_evaluation_sees_every_image_once_in_batches_of_one_size(make_set, batch_size, world_size):
    source = make_set(SIZES)
    seen = []
    for rank in range(world_size):
        loader = test_loader(source, batch_size=batch_size, rank=rank, world_size=world_size)
        batches = list(loader)
        assert len(batches) == len(loader)
        for batch in batches:
            assert len(batch) <= batch_size
            assert len({tuple(s["image"].shape) for s in batch}) == 1
            seen += [s["image_id"] for s in batch]
    assert sorted(seen) == list(range(len(SIZES)))


def test_more_processes_than_images(make_set):
    source = make_set(SIZES[:2])
    assert [len(test_loader(source, rank=r, world_size=3)) for r in range(3)] == [1, 1, 0]


def test_refusals_of_the_test_loader(make_set):
    source = make_set(SIZES[:2])
    with pytest.raises(ValueError, match="batch_size"):
        test_loader(source, batch_size=0)
    for transform in (ResizeShortSide([10, 20], 40), DETRAugmentation([10], 40)):
        with pytest.raises(ValueError, match="deterministic"):
            TestLoader(open_dataset(*source), mapper=DetectionMapper([transform]))


def test_sample_is_detectron2_s_dict(make_set):
    loader = test_loader(make_set([(20, 40)]))
    ((sample,),) = list(loader)
    assert (sample["height"], sample["width"]) == (20, 40)
    assert sample["image"].shape == (3, 30, 60)
    assert sample["image"].is_contiguous()
    assert type(sample["image"]) is torch.Tensor
    targets = sample["instances"]
    assert type(targets.gt_boxes.tensor) is torch.Tensor
    assert targets.image_size == (30, 60)
    assert targets.gt_boxes.tensor.tolist() == [[3.0, 4.5, 54.0, 27.0]]
    assert targets.gt_classes.tolist() == [0]


def test_crop_drops_classes_with_their_boxes(make_set):
    sizes, boxes = [(100, 100)] * 1, [[0, 0, 10, 10]]
    loader = TrainLoader(
        open_dataset(*make_set(sizes, boxes=boxes)),
        mapper=DetectionMapper([DETRAugmentation([100], 200, crop_probability=1.0)]),
        total_batch_size=1,
    )
    counts = set()
    for (sample,) in take(loader, 30):
        targets = sample["instances"]
        assert len(targets.gt_classes) == len(targets.gt_boxes)
        assert targets.gt_boxes.nonempty().all()
        counts.add(len(targets))
    assert counts == {0, 1}


# --- the mapper in loaders of others, which call it with the record alone


class Mapped(torch.utils.data.Dataset):
    """As detectron2's MapDataset: ``mapper(record)``."""

    def __init__(self, records, mapper):
        self.records, self.mapper = records, mapper

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.mapper(self.records[index])


def mapped(records, *, seed: int, workers: int):
    torch.manual_seed(seed)
    mapper = DetectionMapper([DETRAugmentation([24, 28, 32], 64)])
    loader = torch.utils.data.DataLoader(
        Mapped(records, mapper), batch_size=None, num_workers=workers
    )
    return list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mapper_that_is_given_the_record_alone_draws_from_the_seed_of_the_worker(
    make_set, workers
):
    records = [open_dataset(*make_set(SIZES[:3])).records[0]] * 12
    first = mapped(records, seed=3, workers=workers)
    same(first, mapped(records, seed=3, workers=workers))
    other = mapped(records, seed=4, workers=workers)
    assert any(a["image"].shape != b["image"].shape for a, b in zip(first, other, strict=True))
    shapes = [tuple(sample["image"].shape) for sample in first]
    assert len(set(shapes[::2])) > 1, "every record of a worker is drawn anew"
    if workers:
        assert shapes[::2] != shapes[1::2], "the workers draw the same"


def test_a_given_source_leaves_the_generator_of_torch_alone(make_set):
    record = open_dataset(*make_set(SIZES[:3])).records[0]
    mapper = DetectionMapper([DETRAugmentation([24, 28, 32], 64)])
    before = torch.get_rng_state()
    same([mapper(record, random.Random(1))], [mapper(record, random.Random(1))])
    assert torch.equal(torch.get_rng_state(), before)
    mapper(record)
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_record_without_annotations_has_no_objects(make_set):
    record = open_dataset(*make_set(SIZES[:3])).records[0]
    del record["annotations"]
    assert len(DetectionMapper([])(record)["instances"]) == 0
