"""DAB-DETR with three patterns for every box: 900 queries."""

from .dab_detr_r50_dc5_50ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.query_initializer.update(num_patterns=3, indicator=False)
train.output_dir = "output/dab_detr_r50_dc5_3pat_50ep"
