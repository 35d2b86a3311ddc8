"""Large pictures with small objects, whose class only the full resolution tells.

Discs of 12 to 32 pixels, on canvases of any size. What the class depends on is a pattern of lines
two pixels wide. The mean of every four by four pixels is the same for all classes, and for
look-alikes without a pattern, which are not labeled: a picture reduced to a quarter shows where
something is, and not what. Every picture follows from (seed, split, index) alone and is the same
on every machine, as those of `sparsedet.data.shapes`.

    python -m sparsedet.data.haystack --output datasets/haystack --size 1024
"""

from sparsedet.data.haystack.scene import CLASS_NAMES, HaystackOptions, haystack_sample
from sparsedet.data.haystack.write import write_haystack

__all__ = ["CLASS_NAMES", "HaystackOptions", "haystack_sample", "write_haystack"]
