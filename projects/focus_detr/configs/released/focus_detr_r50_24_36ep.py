"""The model of detrex's 24 and 36-epoch weights: another position embedding of the cells."""

from .focus_detr_r50 import model

model.position_embedding.update(temperature=20.0, offset=0.0)
