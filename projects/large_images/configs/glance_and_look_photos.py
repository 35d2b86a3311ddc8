"""Glance and look for a CPU: large photographs of your own, a backbone that needs no network.

It has the backbone of `configs/photos.py` and a Focus-DETR of the same size, and takes the same
overrides for your data set. Pictures keep their size, in training as well: boxes are learned
relative to the picture, so what a model learns from crops does not hold in whole pictures.
"""

from sparsedet.config import LazyCall as L
from sparsedet.config import get_config
from sparsedet.data import RandomHorizontalFlip
from sparsedet.modeling import ForegroundScorer, GlanceAndLook

_host = get_config("photos")
dataset, dataloader, train = _host.dataset, _host.dataloader, _host.train
model, optimizer, lr_multiplier = _host.model, _host.optimizer, _host.lr_multiplier

dataloader.train.mapper.transforms = [L(RandomHorizontalFlip)(probability=0.5)]
dataloader.test.mapper.transforms = []
dataloader.test.batch_size = 1

# strides 8 and 16 in the tiles, 32 to 256 at a glance
model.num_levels = 6
model.backbone.out_features = ["res3", "res4", "res5"]
model.neck.update(in_channels=dict(res3=40, res4=112, res5=320), strides=[8, 16, 32], num_levels=4)
model.regions = L(GlanceAndLook)(
    glance_factor=4,
    tile=256,
    halo=32,
    look_ratio=0.2,
    scorer=L(ForegroundScorer)(embed_dim="${...embed_dim}", num_levels="${...neck.num_levels}"),
    min_visible=16,
    taught_passes=1000,
)
_seen = get_config("common/models/glance_and_look.py").model.criterion
model.criterion.unmatched, model.criterion.regions = _seen.unmatched, _seen.regions
train.output_dir = "output/glance_and_look_photos"
