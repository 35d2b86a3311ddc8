"""Focus-DETR of this library, ResNet-50, 12 epochs, for detectron2's lazyconfig_train_net.py."""

from sparsedet.config import get_config
from sparsedet.engine import clipping_adamw

_host = get_config("focus_detr_r50_12ep")
model, dataset, dataloader = _host.model, _host.dataset, _host.dataloader
optimizer, lr_multiplier = _host.optimizer, _host.lr_multiplier

train = get_config("common/train_detectron2.py").train
train.output_dir = "output/interop_focus_detr_detectron2_12ep"
optimizer.update(_target_=clipping_adamw, max_norm=0.1)  # its trainer does not clip
