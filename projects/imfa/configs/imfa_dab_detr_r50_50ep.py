"""IMFA (CVPR 2023) on DAB-DETR, ResNet-50, 50 epochs."""

from sparsedet.config import get_config
from sparsedet.modeling import InterleavedDecoder

from .imfa_detr_r50_50ep import dataloader, dataset, lr_multiplier, optimizer, train

_imfa = get_config("projects/imfa/configs/imfa_detr_r50_50ep.py").model
model = get_config("common/models/dab_detr.py").model
model.update({name: _imfa[name] for name in ("num_levels", "backbone", "neck", "encoder")})
model.position_embedding.offset = _imfa.position_embedding.offset
model.decoder._target_ = InterleavedDecoder
model.decoder.update(num_levels="${..num_levels}", num_regions=60, num_points=8)
model.decoder.temperature = "${..position_embedding.temperature}"
model.decoder.scale_tokens_pos = True

train.output_dir = "output/imfa_dab_detr_r50_50ep"
