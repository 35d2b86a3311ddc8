"""A small Focus-DETR that trains on the CPU in minutes, on the shapes set or on your own.

Another set needs `dataset.train_json=... dataset.train_images=... dataset.val_json=...
dataset.val_images=...` and nothing else; `dataset.short_sides`, `dataset.test_short_side` and
`dataset.max_size` set the image sizes, and `size_ranges` of the foreground loss must fit them.
"""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import TimmBackbone

from .common.data.shapes import dataloader, dataset
from .common.models.focus_small import model
from .common.optim import cosine_lr_multiplier as lr_multiplier
from .common.optim import optimizer
from .common.train import train

# a narrow ResNet-10 from random weights; its stride-4 map makes small objects visible
model.backbone = L(TimmBackbone)(
    name="resnet10t",
    out_features=["res2", "res3", "res4", "res5"],
    model_args=dict(channels=[32, 64, 128, 192], stem_width=16),
)
model.neck.in_channels = dict(res2=32, res3=64, res4=128, res5=192)
model.neck.strides = [4, 8, 16, 32]
# largest distance to the sides of a box, in pixels, that each level is responsible for
model.criterion.unmatched[0].size_ranges = [[-1, 16], [8, 32], [16, 64], [32, 999999]]

dataloader.train.total_batch_size = 8
optimizer.lr = 1.6e-3
# a backbone from random weights learns as fast as the rest
optimizer.params.rules = [dict(pattern="sampling_offsets", lr_factor=0.1)]
train.epochs = 5
train.eval_epochs = 0
train.output_dir = "output/quickstart"
