"""The embedded set: procedural pictures of seven shapes, made without a download.

The shape decides the class, never the color; each class has its own band of sizes, from dots of
5 pixels to bars of 90, so what a detector can find depends on the scale it can see. Every picture
follows from (seed, split, index) alone and is the same on every machine: chance comes from raw
PCG64 output, and the arithmetic is limited to operations that IEEE 754 defines exactly.

    python -m sparsedet.data.shapes --output datasets/shapes
"""

from sparsedet.data.shapes.files import write_shapes
from sparsedet.data.shapes.scene import CLASS_NAMES, ShapesOptions, ShapesSample, shapes_sample

__all__ = ["CLASS_NAMES", "ShapesOptions", "ShapesSample", "shapes_sample", "write_shapes"]
