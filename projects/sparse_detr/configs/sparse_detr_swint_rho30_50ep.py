"""Sparse DETR, Swin-T, keep ratio 0.3."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import TorchvisionSwin

from .sparse_detr_r50_rho30_50ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone = L(TorchvisionSwin)(name="swin_t", weights="IMAGENET1K_V1", freeze_at=2)
model.neck.in_channels = dict(res3=192, res4=384, res5=768)
train.output_dir = "output/sparse_detr_swint_rho30_50ep"
