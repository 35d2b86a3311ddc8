"""Focus-DETR, Swin-T (224 px, ImageNet-1k), 12 epochs."""

from sparsedet.config import get_config

from .focus_detr_r50_12ep import dataloader, dataset, lr_multiplier, model, optimizer, train

_swin = get_config("projects/dino/configs/dino_swin_tiny_224_4scale_12ep.py").model
model.backbone, model.neck.in_channels = _swin.backbone, _swin.neck.in_channels
train.output_dir = "output/focus_detr_swin_tiny_224_12ep"
