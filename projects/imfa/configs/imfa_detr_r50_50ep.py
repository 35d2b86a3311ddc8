"""IMFA (CVPR 2023) on DETR, ResNet-50, 50 epochs."""

from sparsedet.config import LazyCall as L
from sparsedet.config import get_config
from sparsedet.modeling import GlobalEncoder, InterleavedDecoder

_recipe = get_config("common/coco_50ep.py")
dataset, dataloader, train = _recipe.dataset, _recipe.dataloader, _recipe.train
optimizer, lr_multiplier = get_config("common/optim.py").detr_optimizer, _recipe.lr_multiplier

model = get_config("common/models/detr.py").model
model.num_levels = 4
model.backbone.out_features = ["res2", "res3", "res4", "res5"]
model.neck.in_channels = dict(res2=256, res3=512, res4=1024, res5=2048)
model.neck.strides = [4, 8, 16, 32]
model.position_embedding.offset = -0.5
model.encoder = L(GlobalEncoder)(embed_dim="${..embed_dim}", num_layers=0)
model.decoder._target_ = InterleavedDecoder
model.decoder.update(
    num_levels="${..num_levels}",
    num_regions=20,
    num_points=8,
)

train.output_dir = "output/imfa_detr_r50_50ep"
