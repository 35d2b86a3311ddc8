"""The host of global attention: DETR with ResNet-50."""

from sparsedet.config import LazyCall as L
from sparsedet.layers.positional import SinePositionEmbedding
from sparsedet.modeling import (
    BoxL1Loss,
    ChannelMapper,
    CrossEntropyLoss,
    GIoULoss,
    GlobalDecoder,
    GlobalEncoder,
    HungarianMatcher,
    PositionQueries,
    SetCriterion,
    TokenSparseDetector,
    TorchvisionResNet,
)

model = L(TokenSparseDetector)(
    embed_dim=256,
    # None without a dataset; the model then says what to set
    num_classes="${oc.select:dataset.num_classes,null}",
    num_levels=1,
    backbone=L(TorchvisionResNet)(
        name="resnet50",
        weights="IMAGENET1K_V1",
        out_features=["res5"],
        freeze_at=2,
        dilation=False,
    ),
    neck=L(ChannelMapper)(
        in_channels=dict(res5=2048),
        strides=[32],
        embed_dim="${..embed_dim}",
        num_levels="${..num_levels}",
        norm=None,
    ),
    position_embedding=L(SinePositionEmbedding)(embed_dim="${..embed_dim}", offset=0.0),
    level_embed=False,
    encoder=L(GlobalEncoder)(
        embed_dim="${..embed_dim}",
        num_heads=8,
        feedforward_dim=2048,
        dropout=0.1,
        num_layers=6,
    ),
    query_initializer=L(PositionQueries)(embed_dim="${..embed_dim}", num_queries=100),
    decoder=L(GlobalDecoder)(
        embed_dim="${..embed_dim}",
        num_heads=8,
        feedforward_dim=2048,
        dropout=0.1,
        num_layers=6,
        refine=False,
    ),
    shared_heads=True,
    criterion=L(SetCriterion)(
        matcher=L(HungarianMatcher)(class_cost=1.0, box_cost=5.0, giou_cost=2.0),
        matched=[
            L(CrossEntropyLoss)(weight=1.0, no_object_weight=0.1),
            L(BoxL1Loss)(weight=5.0),
            L(GIoULoss)(weight=2.0),
        ],
        unmatched=[],
    ),
)
