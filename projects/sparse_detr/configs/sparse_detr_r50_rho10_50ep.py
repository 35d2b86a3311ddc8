"""Sparse DETR, ResNet-50, keep ratio 0.1."""

from .sparse_detr_r50_rho30_50ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.selector.keep_ratio = 0.1
train.output_dir = "output/sparse_detr_r50_rho10_50ep"
