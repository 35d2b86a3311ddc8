"""Focus-DETR trained with changing keep ratios, so that one set of weights serves any of them."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import ElasticSelector

from .focus_detr_r50_12ep import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.selector = L(ElasticSelector)(
    keep_ratio=0.5,
    train_ratios=[0.1, 0.2, 0.35, 0.5, 0.85],
    schedule=[1.0, 0.8, 0.6, 0.6, 0.4, 0.2],
)
train.output_dir = "output/focus_detr_r50_elastic_12ep"
