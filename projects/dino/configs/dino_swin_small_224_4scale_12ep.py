"""DINO, Swin-S (224 px, ImageNet-1k), four levels, 12 epochs."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import TimmBackbone

from .dino_r50_4scale_12ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone = L(TimmBackbone)(
    name="swin_small_patch4_window7_224.ms_in1k",
    pretrained=True,
    norm_maps=True,
    model_args=dict(drop_path_rate=0.2),
)
model.neck.in_channels = dict(res3=192, res4=384, res5=768)
train.output_dir = "output/dino_swin_small_224_4scale_12ep"
