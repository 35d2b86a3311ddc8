"""The model of detrex's 24-epoch weights: another position embedding of the cells."""

from .dino_r50_4scale import model

model.position_embedding.update(temperature=20.0, offset=0.0)
