"""Models of ``transformers`` with parts of this library."""

from sparsedet.interop.transformers.kernel import KernelSwap, restore_kernel, use_sparsedet_kernel

__all__ = ["KernelSwap", "restore_kernel", "use_sparsedet_kernel"]
