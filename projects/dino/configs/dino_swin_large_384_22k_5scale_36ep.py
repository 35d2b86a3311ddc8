"""DINO, Swin-L (384 px, ImageNet-22k, then 1k), five levels, 36 epochs."""

from .dino_r50_4scale_36ep import dataloader, dataset, lr_multiplier, optimizer, train
from .dino_swin_large_384_22k_5scale_12ep import model

train.output_dir = "output/dino_swin_large_384_22k_5scale_36ep"
