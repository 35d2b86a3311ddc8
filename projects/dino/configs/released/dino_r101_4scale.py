"""The model of detrex's 12-epoch weights with ResNet-101."""

from .dino_r50_4scale import model

model.backbone.name = "resnet101"
