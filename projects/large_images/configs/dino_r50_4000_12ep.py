"""DINO with ResNet-50 on pictures of 4000 pixels: every token of the whole picture."""

from .dino_r50_2560_12ep import dataloader, dataset, lr_multiplier, model, optimizer, train

dataset.max_size = 4000
train.output_dir = "output/dino_r50_4000_12ep"
