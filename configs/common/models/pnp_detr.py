"""PnP-DETR with ResNet-50: DETR on a share of the tokens and 30 means of the others."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import ElasticSelector, PollRegularizer, PollScorer, PoolSampler

from .detr import model

model.scorer = L(PollScorer)(embed_dim="${..embed_dim}")
model.selector = L(ElasticSelector)(
    keep_ratio=0.33, train_ratios=[1 / 3, 0.8], continuous=True, one_more=False
)
model.encoder.input_norm = True
model.encoder.pool = L(PoolSampler)(embed_dim="${..embed_dim}", num_tokens=30)
model.criterion.unmatched = [L(PollRegularizer)(weight=1e-4)]
