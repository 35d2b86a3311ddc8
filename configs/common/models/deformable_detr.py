"""The host of this family: Deformable DETR with ResNet-50, one-stage, without box refinement."""

from sparsedet.config import LazyCall as L
from sparsedet.layers.positional import SinePositionEmbedding
from sparsedet.modeling import (
    BoxL1Loss,
    ChannelMapper,
    DeformableDecoder,
    DeformableEncoder,
    FocalLoss,
    GIoULoss,
    HungarianMatcher,
    LearnedQueries,
    SetCriterion,
    TokenSparseDetector,
    TorchvisionResNet,
)

model = L(TokenSparseDetector)(
    embed_dim=256,
    # None without a dataset; the model then says what to set
    num_classes="${oc.select:dataset.num_classes,null}",
    num_levels=4,
    backbone=L(TorchvisionResNet)(name="resnet50", weights="IMAGENET1K_V1", freeze_at=2),
    neck=L(ChannelMapper)(
        in_channels=dict(res3=512, res4=1024, res5=2048),
        strides=[8, 16, 32],
        embed_dim="${..embed_dim}",
        num_levels="${..num_levels}",
    ),
    position_embedding=L(SinePositionEmbedding)(embed_dim="${..embed_dim}"),
    encoder=L(DeformableEncoder)(
        embed_dim="${..embed_dim}",
        num_heads=8,
        num_levels="${..num_levels}",
        num_points=4,
        feedforward_dim=1024,
        dropout=0.1,
        num_layers=6,
    ),
    query_initializer=L(LearnedQueries)(embed_dim="${..embed_dim}", num_queries=300),
    decoder=L(DeformableDecoder)(
        embed_dim="${..embed_dim}",
        num_heads=8,
        num_levels="${..num_levels}",
        num_points=4,
        feedforward_dim=1024,
        dropout=0.1,
        num_layers=6,
        refine=False,
    ),
    shared_heads=True,
    criterion=L(SetCriterion)(
        matcher=L(HungarianMatcher)(class_cost=2.0, box_cost=5.0, giou_cost=2.0),
        matched=[L(FocalLoss)(weight=2.0), L(BoxL1Loss)(weight=5.0), L(GIoULoss)(weight=2.0)],
        unmatched=[],
    ),
)
