"""Large pictures with small objects whose class is visible only at full resolution.

The objects are discs of 12 to 32 pixels on canvases of any size. The class is a pattern of lines
two pixels wide. The mean of every four by four pixels is the same for all classes and for unlabeled
look-alikes without a pattern, so a picture at a quarter of its size shows where something is, but
not what it is. Every picture depends only on (seed, split, index) and is the same on every machine,
like those of `sparsedet.data.shapes`.

    python -m sparsedet.data.haystack --output datasets/haystack --size 1024
"""

from sparsedet.data.haystack.scene import CLASS_NAMES, HaystackOptions, haystack_sample
from sparsedet.data.haystack.write import write_haystack

__all__ = ["CLASS_NAMES", "HaystackOptions", "haystack_sample", "write_haystack"]
