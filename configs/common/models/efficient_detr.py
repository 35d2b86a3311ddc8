"""Deformable DETR with refinement and queries from the best tokens: the host of Sparse DETR."""

from sparsedet.modeling import EfficientQueries

from .deformable_detr import model

model.query_initializer._target_ = EfficientQueries
model.decoder.refine = True
model.shared_heads = False
