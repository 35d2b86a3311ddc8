"""IMFA (CVPR 2023) on Conditional DETR, ResNet-50, 50 epochs."""

from sparsedet.config import get_config
from sparsedet.modeling import InterleavedDecoder

from .imfa_detr_r50_50ep import dataloader, dataset, lr_multiplier, optimizer, train

_imfa = get_config("projects/imfa/configs/imfa_detr_r50_50ep.py").model
model = get_config("common/models/conditional_detr.py").model
model.update({name: _imfa[name] for name in ("num_levels", "backbone", "neck", "encoder")})
model.position_embedding.offset = _imfa.position_embedding.offset
model.decoder._target_ = InterleavedDecoder
model.decoder.update(num_levels="${..num_levels}", num_regions=60, num_points=8)

train.output_dir = "output/imfa_conditional_detr_r50_50ep"
