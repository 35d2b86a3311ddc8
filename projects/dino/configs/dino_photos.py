"""The host of `configs/photos.py` without its selection: a small DINO that updates every token."""

from sparsedet.config import get_config
from sparsedet.modeling import DeformableEncoder

_host = get_config("photos")
dataset, dataloader, train = _host.dataset, _host.dataloader, _host.train
optimizer, lr_multiplier = _host.optimizer, _host.lr_multiplier

model = _host.model
model.scorer = model.selector = None
model.encoder._target_ = DeformableEncoder
del model.encoder["num_objects"]
model.criterion.unmatched = []

train.output_dir = "output/dino_photos"
