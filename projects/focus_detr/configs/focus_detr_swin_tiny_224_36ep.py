"""Focus-DETR, Swin-T (224 px, ImageNet-1k), 36 epochs."""

from .focus_detr_r50_36ep import dataloader, dataset, lr_multiplier, optimizer, train
from .focus_detr_swin_tiny_224_12ep import model

train.output_dir = "output/focus_detr_swin_tiny_224_36ep"
