"""Checkpoints: written atomically, read safely, matched strictly.

A checkpoint is a dict with at least `"model"` (a state dict). Full checkpoints, written during
training, also have the complete state that a resumed run needs. Checksums are verified, files are
read without executing code from them (`weights_only`), and errors name every tensor that does not
fit.
"""

from sparsedet.checkpoint.files import (
    CheckpointError,
    load_checkpoint,
    model_weights,
    require_file,
    save_checkpoint,
)
from sparsedet.checkpoint.store import CheckpointStore
from sparsedet.checkpoint.values import describe, non_finite
from sparsedet.checkpoint.weights import (
    CLASS_HEAD,
    LABEL_EMBEDDING,
    Differences,
    LoadReport,
    check_weights,
    compare_weights,
    leave_out_pretrained,
    load_weights,
    restore_model,
)
from sparsedet.files import atomic_write

__all__ = [
    "CLASS_HEAD",
    "LABEL_EMBEDDING",
    "CheckpointError",
    "CheckpointStore",
    "Differences",
    "LoadReport",
    "atomic_write",
    "check_weights",
    "compare_weights",
    "describe",
    "leave_out_pretrained",
    "load_checkpoint",
    "load_weights",
    "model_weights",
    "non_finite",
    "require_file",
    "restore_model",
    "save_checkpoint",
]
