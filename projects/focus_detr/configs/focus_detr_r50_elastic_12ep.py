"""Focus-DETR trained with random keep ratios, so that one set of weights works at any ratio."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import ElasticSelector

from .focus_detr_r50_12ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.selector = L(ElasticSelector)(
    keep_ratio=0.3,
    train_ratios=[0.06, 0.12, 0.21, 0.3, 0.51],
    layer_ratios=[0.5, 0.4, 0.3, 0.3, 0.2, 0.1],
)
train.output_dir = "output/focus_detr_r50_elastic_12ep"
