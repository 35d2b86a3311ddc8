"""Large pictures, 12 epochs: what the configs of `projects/large_images` share beside the model."""

from .data.large import dataloader, dataset
from .optim import dino_optimizer as optimizer
from .optim import lr_multiplier_12ep as lr_multiplier
from .train import train

train.epochs = 12
