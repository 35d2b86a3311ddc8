"""FCOS (ICCV 2019), ResNet-50: torchvision's recipe."""

from .retinanet_r50_26ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.name = "fcos_resnet50_fpn"
model.max_detections = 100
train.amp.enabled = True
train.output_dir = "output/fcos_r50_26ep"
