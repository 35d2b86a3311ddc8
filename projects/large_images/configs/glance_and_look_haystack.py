"""Glance and look for a CPU on the procedural set of large pictures with small objects.

The set is made by `python -m sparsedet.data.haystack --output datasets/haystack`.
"""

from sparsedet.config import get_config

_host = get_config("projects/large_images/configs/glance_and_look_photos.py")
dataset, dataloader, train = _host.dataset, _host.dataloader, _host.train
model, optimizer, lr_multiplier = _host.model, _host.optimizer, _host.lr_multiplier

dataset.update(
    train_json="datasets/haystack/annotations/instances_train.json",
    train_images="datasets/haystack/train",
    val_json="datasets/haystack/annotations/instances_val.json",
    val_images="datasets/haystack/val",
)
dataloader.evaluator.area_bounds = [256, 576]  # sides of 16 and 24 pixels
model.regions.update(tile=128, look_ratio=0.25)
train.output_dir = "output/glance_and_look_haystack"
