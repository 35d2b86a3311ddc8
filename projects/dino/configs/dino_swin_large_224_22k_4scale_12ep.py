"""DINO, Swin-L (224 px, ImageNet-22k, then 1k), four levels, 12 epochs."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import TimmBackbone

from .dino_r50_4scale_12ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone = L(TimmBackbone)(
    name="swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    pretrained=True,
    norm_maps=True,
    model_args=dict(drop_path_rate=0.2),
)
model.neck.in_channels = dict(res3=384, res4=768, res5=1536)
train.output_dir = "output/dino_swin_large_224_22k_4scale_12ep"
