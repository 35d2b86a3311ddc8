"""Large pictures with small objects, trained and evaluated as a whole.

Pictures are resized to a long side of `dataset.max_size` pixels. `test_short_side` is out of reach,
so only the long side matters. Boxes are learned relative to the picture, so a model trained
on crops does not work on whole pictures.
"""

from sparsedet.config import LazyCall as L
from sparsedet.data import RandomHorizontalFlip, ResizeShortSide

from .coco import dataloader, dataset

dataset.update(
    train_json="datasets/large/train.json",
    train_images="datasets/large/train",
    val_json="datasets/large/val.json",
    val_images="datasets/large/val",
    num_classes=None,
    short_sides=[100000],
    test_short_side=100000,
    max_size=2560,
)
dataloader["train"].mapper.transforms = [
    L(RandomHorizontalFlip)(probability=0.5),
    L(ResizeShortSide)(short_sides="${dataset.short_sides}", max_size="${dataset.max_size}"),
]
