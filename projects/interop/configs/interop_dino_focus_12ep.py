"""detrex's DINO, ResNet-50, 12 epochs, with Focus-DETR's scorer, cascade and dual attention."""

from sparsedet.config import LazyCall as L
from sparsedet.interop import detrex as _detrex
from sparsedet.modeling import (
    DualAttentionEncoder,
    ForegroundLoss,
    ForegroundScorer,
    TopKSelector,
)

_host = _detrex.project_config("dino/configs/dino-resnet/dino_r50_4scale_12ep.py")
model, dataloader, train = _host.model, _host.dataloader, _host.train
optimizer, lr_multiplier = _host.optimizer, _host.lr_multiplier

model.transformer.encoder = L(_detrex.SparseEncoder)(
    encoder=L(DualAttentionEncoder)(feedforward_dim=2048, dropout=0.0),
    scorer=L(ForegroundScorer)(),
    selector=L(TopKSelector)(keep_ratio=0.3, layer_ratios=[0.5, 0.4, 0.3, 0.3, 0.2, 0.1]),
    losses=[L(ForegroundLoss)(weight=1.5)],
)
model = L(_detrex.connect)(model=model)
train.output_dir = dataloader.evaluator.output_dir = "output/interop_dino_focus_12ep"
