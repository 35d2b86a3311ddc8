"""Focus-DETR of this library, ResNet-50, 12 epochs, with detrex's data and recipe."""

from sparsedet.config import get_config
from sparsedet.interop.detrex import project_config

_host = project_config("dino/configs/dino-resnet/dino_r50_4scale_12ep.py")
dataloader, train = _host.dataloader, _host.train
optimizer, lr_multiplier = _host.optimizer, _host.lr_multiplier

model = get_config("projects/focus_detr/configs/focus_detr_r50_12ep.py").model
model.num_classes = 80
train.init_checkpoint = ""  # the backbone fetches its weights itself
train.output_dir = dataloader.evaluator.output_dir = "output/interop_focus_detr_12ep"
