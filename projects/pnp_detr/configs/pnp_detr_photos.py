"""A small PnP-DETR with the data, backbone, iterations and evaluation of `configs/photos.py`."""

from sparsedet.config import get_config

_host = get_config("detr_photos")
dataset, dataloader, train = _host.dataset, _host.dataloader, _host.train
optimizer, lr_multiplier = _host.optimizer, _host.lr_multiplier

model = _host.model
_sampling = get_config("common/models/pnp_detr.py").model
model.scorer, model.selector = _sampling.scorer, _sampling.selector
model.encoder.input_norm, model.encoder.pool = True, _sampling.encoder.pool
model.criterion.unmatched = _sampling.criterion.unmatched

train.output_dir = "output/pnp_detr_photos"
