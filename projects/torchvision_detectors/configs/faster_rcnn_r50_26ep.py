"""Faster R-CNN (NeurIPS 2015) with a feature pyramid, ResNet-50: torchvision's recipe."""

from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch.optim import SGD

from sparsedet.config import LazyCall as L
from sparsedet.config import get_config
from sparsedet.engine.optim import WarmupParamScheduler, param_groups
from sparsedet.modeling import TorchvisionDetector, TorchvisionResNet

_recipe = get_config("common/coco_50ep.py")
dataset, dataloader, train = _recipe.dataset, _recipe.dataloader, _recipe.train

model = L(TorchvisionDetector)(
    name="fasterrcnn_resnet50_fpn",
    num_classes="${dataset.num_classes}",
    backbone=L(TorchvisionResNet)(
        name="resnet50",
        out_features=["res2", "res3", "res4", "res5"],
        weights="IMAGENET1K_V1",
        freeze_at=2,
    ),
    in_channels=dict(res2=256, res3=512, res4=1024, res5=2048),
)

# one size and flips alone
dataset.short_sides = [800]
dataloader["train"].mapper.transforms[0].crop_probability = 0.0

optimizer = L(SGD)(
    params=L(param_groups)(
        base_lr="${..lr}", rules=[], weight_decay_norm=None, weight_decay_bias=None
    ),
    lr=0.02,
    momentum=0.9,
    weight_decay=1e-4,
)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01], milestones=[16, 22], num_updates=26
    ),
    # 1000 of the 26 x 7330 iterations
    warmup_length=0.00525,
    warmup_factor=0.001,
)
train.epochs = 26
train.clip_grad.enabled = False
train.output_dir = "output/faster_rcnn_r50_26ep"
