"""DINO, ResNet-50, five levels (strides 4 to 64), 24 epochs."""

from .dino_r50_4scale_24ep import dataloader, dataset, lr_multiplier, optimizer, train
from .dino_r50_5scale_12ep import model

train.output_dir = "output/dino_r50_5scale_24ep"
