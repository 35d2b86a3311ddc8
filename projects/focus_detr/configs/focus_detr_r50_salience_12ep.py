"""Focus-DETR whose scorer learns how central a token is in its object (Salience DETR)."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import SalienceLoss

from .focus_detr_r50_12ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.criterion.unmatched = [L(SalienceLoss)(weight=1.5)]
train.output_dir = "output/focus_detr_r50_salience_12ep"
