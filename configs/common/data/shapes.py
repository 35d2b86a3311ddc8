"""The procedural set, written by `python -m sparsedet.data.shapes --output datasets/shapes`.

Its images are small, so "small" and "large" in AP by size mean below 12 and above 32 pixels.
"""

from .coco import dataloader, dataset

dataset.update(
    train_json="datasets/shapes/annotations/instances_train.json",
    train_images="datasets/shapes/train",
    val_json="datasets/shapes/annotations/instances_val.json",
    val_images="datasets/shapes/val",
    num_classes=None,
    short_sides=[152, 160, 168],
    test_short_side=160,
    max_size=320,
)
dataloader["train"].num_workers = 1
# the size of an object determines its class here, so nothing is enlarged
dataloader["train"].mapper.transforms[0].crop_probability = 0.0
dataloader["test"].num_workers = 0
dataloader["test"].batch_size = 16
dataloader["evaluator"].area_bounds = [144, 1024]
