"""Two-stage Deformable DETR with all of Focus-DETR, keep ratio 0.3."""

from sparsedet.config import get_config
from sparsedet.modeling import DualAttentionEncoder

_host = get_config("projects/deformable_detr/configs/deformable_detr_r50_two_stage_50ep.py")
dataset, dataloader, train = _host.dataset, _host.dataloader, _host.train
model, optimizer, lr_multiplier = _host.model, _host.optimizer, _host.lr_multiplier

_focus = get_config("projects/focus_detr/configs/focus_detr_r50_12ep.py").model
model.scorer, model.selector = _focus.scorer, _focus.selector
model.encoder._target_, model.criterion.unmatched = DualAttentionEncoder, _focus.criterion.unmatched
train.output_dir = "output/focus_detr_two_stage_focus_50ep"
