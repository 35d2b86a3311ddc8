"""Glance and look with an additional level of stride 4 in the tiles."""

from sparsedet.config import get_config

_host = get_config("projects/large_images/configs/glance_and_look_r50_2560_12ep.py")
dataset, dataloader, train = _host.dataset, _host.dataloader, _host.train
model, optimizer, lr_multiplier = _host.model, _host.optimizer, _host.lr_multiplier

# strides 4 and 8 in the tiles, 16 to 128 at a glance
model.backbone.out_features = ["res2", "res3", "res4", "res5"]
model.neck.in_channels = dict(res2=256, res3=512, res4=1024, res5=2048)
model.neck.strides = [4, 8, 16, 32]
_levels = [[-1, 32], [32, 128], [64, 256], [128, 512], [256, 1024], [512, 999999]]
model.criterion.unmatched[0].size_ranges = _levels
train.output_dir = "output/glance_and_look_r50_p2_2560_12ep"
