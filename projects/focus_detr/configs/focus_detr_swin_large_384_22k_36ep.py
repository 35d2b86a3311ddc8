"""Focus-DETR, Swin-L (384 px, ImageNet-22k), 36 epochs."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import TimmBackbone

from .focus_detr_r50_36ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone = L(TimmBackbone)(
    name="swin_large_patch4_window12_384.ms_in22k",
    pretrained=True,
    norm_maps=True,
    model_args=dict(drop_path_rate=0.2),
)
model.neck.in_channels = dict(res3=384, res4=768, res5=1536)
train.output_dir = "output/focus_detr_swin_large_384_22k_36ep"
