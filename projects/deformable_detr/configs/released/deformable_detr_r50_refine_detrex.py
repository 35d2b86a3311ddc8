"""The model of detrex's one-stage weights with box refinement: 80 classes, eps 1e-3."""

from .deformable_detr_r50_plain_detrex import model

model.decoder.refine = True
model.shared_heads = False
