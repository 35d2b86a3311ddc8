"""Focus-DETR, ResNet-101, 36 epochs."""

from .focus_detr_r50_36ep import dataloader, dataset, lr_multiplier, optimizer, train
from .focus_detr_r101_12ep import model

train.output_dir = "output/focus_detr_r101_36ep"
