"""detrex's DINO, ResNet-50, 12 epochs, with the attention kernels of this library."""

from sparsedet.config import LazyCall as L
from sparsedet.interop.detrex import project_config, use_sparsedet_kernel

_host = project_config("dino/configs/dino-resnet/dino_r50_4scale_12ep.py")
model, dataloader, train = _host.model, _host.dataloader, _host.train
optimizer, lr_multiplier = _host.optimizer, _host.lr_multiplier

model = L(use_sparsedet_kernel)(model=model)
train.output_dir = dataloader.evaluator.output_dir = "output/interop_dino_kernel_12ep"
