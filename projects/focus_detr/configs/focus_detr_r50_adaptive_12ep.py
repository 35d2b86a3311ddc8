"""Focus-DETR that keeps the tokens above one threshold, 30 % on average over the images."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import AdaptiveSelector

from .focus_detr_r50_12ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.selector = L(AdaptiveSelector)(
    keep_ratio=0.3, max_ratio=0.9, layer_ratios=[0.5, 0.4, 0.3, 0.3, 0.2, 0.1]
)
train.output_dir = "output/focus_detr_r50_adaptive_12ep"
