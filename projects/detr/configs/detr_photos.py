"""A small DETR with the data, backbone, iterations and evaluation of `configs/photos.py`."""

from sparsedet.config import get_config

_host = get_config("photos")
dataset, dataloader, train = _host.dataset, _host.dataloader, _host.train
lr_multiplier = _host.lr_multiplier
optimizer = get_config("common/optim.py").detr_optimizer

model = get_config("common/models/detr.py").model
# one map of stride 16, since at 32 a picture has 80 cells; the backbone ends there
model.backbone = _host.model.backbone
model.backbone.update(out_features=["res4"], model_args=dict(out_indices=[1, 2, 3]))
model.neck.update(in_channels=dict(res4=112), strides=[16])
model.pixel_mean, model.pixel_std = _host.model.pixel_mean, _host.model.pixel_std
# the sizes of its transformer
model.embed_dim = _host.model.embed_dim
model.encoder.update(num_heads=4, feedforward_dim=256, dropout=0.0, num_layers=2)
model.decoder.update(num_heads=4, feedforward_dim=256, dropout=0.0, num_layers=3)

optimizer.lr = _host.optimizer.lr
train.output_dir = "output/detr_photos"
