"""Arrays and pictures as text."""

from __future__ import annotations

import base64
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from sparsedet.report.packing import Pack, data_uri, quantize


def test_arrays_begin_where_typed_arrays_may_and_equal_ones_are_one() -> None:
    pack = Pack()
    odd = pack.add_bits(np.array([True, False, True] * 3))
    numbers = pack.add(np.array([-1, 258], dtype=">i2"))
    again = pack.add_bits(np.array([True, False, True] * 3))
    assert odd == again == [0, 2] and numbers == [4, 4]
    assert pack.add(np.zeros(3, dtype=np.uint8))[0] % 4 == 0
    assert pack.add(np.ones(1, dtype=np.uint16))[0] % 4 == 0
    content = zlib.decompress(base64.b64decode(pack.text()))
    assert content[:2] == bytes([0b01101101, 0b1])
    assert np.frombuffer(content[4:8], dtype="<i2").tolist() == [-1, 258]


def test_numbers_become_bytes_between_their_bounds() -> None:
    values = np.array([-3.0, -2.0, 0.0, 2.0, np.inf, -np.inf, np.nan])
    assert quantize(values, (-2.0, 2.0)).tolist() == [0, 0, 128, 255, 255, 0, 0]
    assert quantize(np.array([5.0, 5.0]), (5.0, 5.0)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("size", "side", "shown"),
    [((3000, 1500), 1280, (1280, 640)), ((40, 30), 1280, (40, 30)), ((7000, 3), 112, (112, 1))],
)
def test_a_picture_is_made_smaller_never_larger(size, side, shown) -> None:
    uri = data_uri(Image.new("RGB", size, (10, 200, 30)), side)
    head, _, text = uri.partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(text)))
    assert head == "data:image/jpeg;base64"
    assert (picture.size, picture.format) == (shown, "JPEG")
