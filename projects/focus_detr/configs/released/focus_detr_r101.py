"""The model of detrex's 12-epoch weights with ResNet-101."""

from .focus_detr_r50 import model

model.backbone.name = "resnet101"
