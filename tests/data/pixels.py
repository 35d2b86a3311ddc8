"""Picture files of more than 8 bits, of which Pillow writes a few kinds only."""

import struct
import zlib

import numpy as np

_CODES = {3: "H", 4: "I", 8: "h", 11: "f"}


def ramp(limit, dtype="u2"):
    """(8, 64), from 0 on the left to `limit` on the right."""
    return np.tile(np.linspace(0, limit, 64).astype(dtype), (8, 1))


def rgb(gray):
    return np.repeat(gray[..., None], 3, axis=2)


def png16(values, significant=None):
    """A PNG of 16 bits; gray, gray and alpha, or RGB."""
    height, width = values.shape[:2]
    color = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2] if values.ndim == 3 else 1]

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))]
    if significant is not None:
        parts.append(chunk(b"sBIT", bytes([significant] * (3 if color in (2, 6) else 1))))
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values, *, kind=1, order="<", strips=1, tags=(), white_is_zero=False, packed=False):
    """A TIFF. `kind` is its SampleFormat: 1 without sign, 2 with sign, 3 floats."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    rows = values.astype(values.dtype.newbyteorder(order))
    blocks = [part.tobytes() for part in np.array_split(rows, strips)]
    blocks = [_pack_bits(block) for block in blocks] if packed else blocks
    bits = values.dtype.itemsize * 8
    photometric = 2 if channels == 3 else int(not white_is_zero)
    entries = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * channels),
        259: (3, [32773 if packed else 1]),
        262: (3, [photometric]),
        273: (4, [0] * strips),
        277: (3, [channels]),
        278: (4, [height // strips]),
        279: (4, [len(block) for block in blocks]),
        339: (3, [kind] * channels),
        **dict(tags),
    }
    for _ in range(2):  # the second time the places of the strips are known
        head, ends = _directory(entries, order), np.cumsum([len(block) for block in blocks])
        entries[273] = (
            4,
            [len(head) + int(end) - len(b) for end, b in zip(ends, blocks, strict=True)],
        )
    return _directory(entries, order) + b"".join(blocks)


def _directory(entries, order):
    begin = 8 + 2 + 12 * len(entries) + 4
    table, beyond = b"", b""
    for tag, (kind, numbers) in sorted(entries.items()):
        content = struct.pack(order + _CODES[kind] * len(numbers), *numbers)
        table += struct.pack(order + "HHI", tag, kind, len(numbers))
        if len(content) <= 4:
            table += content.ljust(4, b"\0")
        else:
            table += struct.pack(order + "I", begin + len(beyond))
            beyond += content + b"\0" * (len(content) % 2)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    count = struct.pack(order + "H", len(entries))
    return magic + struct.pack(order + "I", 8) + count + table + b"\0" * 4 + beyond


def _pack_bits(content):
    pieces = [content[i : i + 128] for i in range(0, len(content), 128)]
    return b"".join(bytes([len(piece) - 1]) + piece for piece in pieces)
