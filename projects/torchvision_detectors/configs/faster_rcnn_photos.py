"""Faster R-CNN with the data, backbone, iterations and evaluation of `configs/photos.py`."""

from sparsedet.config import LazyCall as L
from sparsedet.config import get_config
from sparsedet.modeling import TorchvisionDetector

_host = get_config("photos")
dataset, dataloader, train = _host.dataset, _host.dataloader, _host.train
optimizer, lr_multiplier = _host.optimizer, _host.lr_multiplier

model = L(TorchvisionDetector)(
    name="fasterrcnn_resnet50_fpn",
    num_classes="${dataset.num_classes}",
    backbone=_host.model.backbone,
    in_channels=_host.model.neck.in_channels,
    # short sides of 240 pixels; torchvision's anchors are for 800
    anchor_scale=0.5,
    pixel_mean=_host.model.pixel_mean,
    pixel_std=_host.model.pixel_std,
)

# below the pyramid, or all that SSD has
_backbone = r"^detector\.backbone\.(body|features)\."
optimizer.params.rules = [dict(pattern=_backbone, lr_factor=0.1)]
optimizer.lr = 4e-4
train.output_dir = "output/faster_rcnn_photos"
