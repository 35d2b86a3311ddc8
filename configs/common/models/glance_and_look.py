"""Focus-DETR with ResNet-50 that glances at a large picture and looks at a tenth of its tiles."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import (
    DualAttentionEncoder,
    ForegroundLoss,
    ForegroundScorer,
    GlanceAndLook,
    TopKSelector,
)

from .dino import model

# strides 8 and 16 in the tiles, 32 to 256 at a glance
model.num_levels = 6
model.neck.num_levels = 4
model.regions = L(GlanceAndLook)(
    glance_factor=4,
    tile=256,
    halo=32,
    look_ratio=0.1,
    scorer=L(ForegroundScorer)(embed_dim="${...embed_dim}", num_levels="${...neck.num_levels}"),
    min_visible=16,
    taught_passes=20000,
)
model.scorer = L(ForegroundScorer)(embed_dim="${..embed_dim}", num_levels="${..num_levels}")
model.selector = L(TopKSelector)(keep_ratio=0.1, layer_ratios=[0.5, 0.4, 0.3, 0.3, 0.2, 0.1])
model.encoder._target_ = DualAttentionEncoder
# largest distance to the sides of a box, in pixels, that each level is responsible for
model.criterion.unmatched = [
    L(ForegroundLoss)(
        weight=1.5,
        size_ranges=[
            [-1, 64],
            [64, 256],
            [128, 512],
            [256, 1024],
            [512, 2048],
            [1024, 999999],
        ],
    )
]
# the first level of the glance is responsible for objects that are too small for the glance
model.criterion.regions = [
    L(ForegroundLoss)(weight=1.5, size_ranges=[[-1, 64], [64, 512], [256, 1024], [512, 999999]])
]
