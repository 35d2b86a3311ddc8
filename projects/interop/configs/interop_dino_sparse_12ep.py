"""detrex's DINO, ResNet-50, 12 epochs, that updates the 30 % of the tokens of Sparse DETR."""

from sparsedet.config import LazyCall as L
from sparsedet.interop.detrex import SparseEncoder, connect, project_config
from sparsedet.modeling import DAMPredictor, DecoderAttentionLoss, DeformableEncoder, TopKSelector

_host = project_config("dino/configs/dino-resnet/dino_r50_4scale_12ep.py")
model, dataloader, train = _host.model, _host.dataloader, _host.train
optimizer, lr_multiplier = _host.optimizer, _host.lr_multiplier

model.transformer.encoder = L(SparseEncoder)(
    encoder=L(DeformableEncoder)(feedforward_dim=2048, dropout=0.0),
    scorer=L(DAMPredictor)(),
    selector=L(TopKSelector)(keep_ratio=0.3),
    losses=[L(DecoderAttentionLoss)(weight=1.0)],
)
model = L(connect)(model=model)
train.output_dir = dataloader.evaluator.output_dir = "output/interop_dino_sparse_12ep"
