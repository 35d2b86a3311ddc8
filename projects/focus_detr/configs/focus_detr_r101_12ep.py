"""Focus-DETR, ResNet-101, 12 epochs."""

from .focus_detr_r50_12ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.name = "resnet101"
train.output_dir = "output/focus_detr_r101_12ep"
