"""DINO, ResNet-101, four levels, 12 epochs."""

from .dino_r50_4scale_12ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.name = "resnet101"
train.output_dir = "output/dino_r101_4scale_12ep"
