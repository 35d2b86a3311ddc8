"""ResNet-50 that glances at pictures of 4000 pixels and looks at 10 % of their tiles."""

from .glance_and_look_r50_2560_12ep import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

dataset.max_size = 4000
train.output_dir = "output/glance_and_look_r50_4000_12ep"
