"""The same with detectron2's Swin-T; train.init_checkpoint is a file of its weights."""

from detectron2.modeling import SwinTransformer

from sparsedet.config import LazyCall as L

from .interop_focus_detr_detectron2_12ep import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone = L(SwinTransformer)(drop_path_rate=0.2, out_indices=[1, 2, 3])
model.neck.in_channels = dict(p1=192, p2=384, p3=768)
train.output_dir = "output/interop_focus_detr_detectron2_swin_12ep"
