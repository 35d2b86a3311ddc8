"""Efficient DETR's query initialization on Deformable DETR, Swin-T: a baseline of Sparse DETR."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import TorchvisionSwin

from .efficient_detr_r50_50ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone = L(TorchvisionSwin)(name="swin_t", weights="IMAGENET1K_V1", freeze_at=2)
model.neck.in_channels = dict(res3=192, res4=384, res5=768)
train.output_dir = "output/efficient_detr_swint_50ep"
