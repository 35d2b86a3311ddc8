"""The same with detectron2's ResNet-50 as the backbone."""

from detectron2.modeling.backbone import BasicStem, ResNet

from sparsedet.config import LazyCall as L

from .interop_focus_detr_detectron2_12ep import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone = L(ResNet)(
    stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
    stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=False, norm="FrozenBN"),
    out_features=["res3", "res4", "res5"],
    freeze_at=1,
)
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "output/interop_focus_detr_detectron2_resnet_12ep"
