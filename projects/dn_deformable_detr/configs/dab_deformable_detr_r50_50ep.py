"""DAB-Deformable-DETR (ICLR 2022), ResNet-50, 50 epochs: the same without denoising."""

from .dn_deformable_detr_r50_50ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.denoising = None
train.output_dir = "output/dab_deformable_detr_r50_50ep"
