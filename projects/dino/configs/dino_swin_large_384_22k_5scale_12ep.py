"""DINO, Swin-L (384 px, ImageNet-22k, then 1k), five levels, 12 epochs."""

from .dino_swin_large_384_22k_4scale_12ep import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.num_levels = 5
model.backbone.out_features = ["res2", "res3", "res4", "res5"]
model.neck.in_channels = dict(res2=192, res3=384, res4=768, res5=1536)
model.neck.strides = [4, 8, 16, 32]
train.output_dir = "output/dino_swin_large_384_22k_5scale_12ep"
