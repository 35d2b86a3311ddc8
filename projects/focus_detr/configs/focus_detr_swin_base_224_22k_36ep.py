"""Focus-DETR, Swin-B (224 px, ImageNet-22k), 36 epochs."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import TimmBackbone

from .focus_detr_r50_36ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone = L(TimmBackbone)(
    name="swin_base_patch4_window7_224.ms_in22k",
    pretrained=True,
    norm_maps=True,
    model_args=dict(drop_path_rate=0.2),
)
model.neck.in_channels = dict(res3=256, res4=512, res5=1024)
train.output_dir = "output/focus_detr_swin_base_224_22k_36ep"
