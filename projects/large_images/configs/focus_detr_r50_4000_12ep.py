"""Focus-DETR with ResNet-50 on pictures of 4000 pixels: it updates 10 % of the tokens."""

from .focus_detr_r50_2560_12ep import dataloader, dataset, lr_multiplier, model, optimizer, train

dataset.max_size = 4000
train.output_dir = "output/focus_detr_r50_4000_12ep"
