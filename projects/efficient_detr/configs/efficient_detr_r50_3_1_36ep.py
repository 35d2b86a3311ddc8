"""Efficient DETR (2021) with its three encoder layers and one decoder layer, 36 epochs."""

from sparsedet.config import get_config

from .efficient_detr_r50_50ep import dataloader, dataset, model, optimizer, train

lr_multiplier = get_config("common/optim.py").lr_multiplier_36ep

model.encoder.num_layers = 3
model.decoder.num_layers = 1
train.epochs = 36
train.output_dir = "output/efficient_detr_r50_3_1_36ep"
