"""Conditional DETR (ICCV 2021) with ResNet-50: every query attends around a point."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import FocalLoss

from .detr import model

model.query_initializer.update(num_queries=300, points=True)
model.decoder.cross = "conditional"
model.criterion.matcher.class_cost = 2.0
model.criterion.matched[0] = L(FocalLoss)(weight=2.0)
