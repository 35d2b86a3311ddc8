"""The model of detrex's 24 and 36-epoch weights with ResNet-101."""

from .focus_detr_r50_24_36ep import model

model.backbone.name = "resnet101"
