"""Models of ``transformers`` with parts of this library.

``pip install 'sparsedet[parity]'`` brings transformers.
"""

try:
    import transformers as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        "sparsedet.interop.transformers needs transformers: pip install 'sparsedet[parity]'."
    ) from error

from sparsedet.interop.transformers.kernel import KernelSwap, restore_kernel, use_sparsedet_kernel
from sparsedet.interop.transformers.sparse import (
    SparseDeformableDetrConfig,
    SparseDeformableDetrForObjectDetection,
    SparseDeformableDetrModel,
    sparsify,
)

__all__ = [
    "KernelSwap",
    "SparseDeformableDetrConfig",
    "SparseDeformableDetrForObjectDetection",
    "SparseDeformableDetrModel",
    "restore_kernel",
    "sparsify",
    "use_sparsedet_kernel",
]
