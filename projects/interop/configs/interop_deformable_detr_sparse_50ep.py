"""detrex's two-stage Deformable DETR, ResNet-50, 50 epochs, with Sparse DETR's encoder."""

from sparsedet.config import LazyCall as L
from sparsedet.interop.detrex import SparseEncoder, connect, project_config
from sparsedet.modeling import DAMPredictor, DecoderAttentionLoss, DeformableEncoder, TopKSelector

_host = project_config("deformable_detr/configs/deformable_detr_r50_two_stage_50ep.py")
model, dataloader, train = _host.model, _host.dataloader, _host.train
optimizer, lr_multiplier = _host.optimizer, _host.lr_multiplier

model.transformer.encoder = L(SparseEncoder)(
    encoder=L(DeformableEncoder)(),
    scorer=L(DAMPredictor)(),
    selector=L(TopKSelector)(keep_ratio=0.3),
    losses=[L(DecoderAttentionLoss)(weight=1.0)],
)
model = L(connect)(model=model)
train.output_dir = dataloader.evaluator.output_dir = "output/interop_deformable_detr_sparse_50ep"
