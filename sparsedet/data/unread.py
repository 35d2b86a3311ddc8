"""Recognize files that Pillow does not read, so that a message can name their type."""

from typing import IO

_HEAD = 256  # bytes that are checked
_SAVE = ", which Pillow cannot read; save it as JPEG or PNG"
_FETCH = "; download the picture itself, which may need a login"
# (place of the mark, mark, what the file is, what to do)
_MARKS = (
    (4, b"ftyphei", "a HEIC picture", _SAVE),
    (4, b"ftyphev", "a HEIC picture", _SAVE),
    (4, b"ftypmif1", "a HEIF picture", _SAVE),
    (4, b"ftypmsf1", "a HEIF picture", _SAVE),
    (4, b"ftypavi", "an AVIF picture", _SAVE),
    (4, b"ftypcrx", "a raw camera file (CR3)", _SAVE),
    (4, b"ftyp", "a video", "; save its frames as pictures"),
    (8, b"AVI ", "a video", "; save its frames as pictures"),
    (0, b"\x1aE\xdf\xa3", "a video", "; save its frames as pictures"),
    (0, b"\xff\x0a", "a JPEG XL picture", _SAVE),
    (4, b"JXL ", "a JPEG XL picture", _SAVE),
    (128, b"DICM", "a DICOM file", _SAVE),
    (0, b"v/1\x01", "an OpenEXR picture", _SAVE),
    (0, b"\x93NUMPY", "a NumPy array", _SAVE),
    (0, b"\x89HDF", "an HDF5 file", _SAVE),
    (0, b"%PDF", "a PDF file", _SAVE),
    (0, b"<svg", "an SVG drawing", _SAVE),
    (0, b"<?xml", "an XML file", "; if it is an SVG drawing, save it as PNG"),
    (0, b"<!doctype html", "a web page", _FETCH),
    (0, b"<html", "a web page", _FETCH),
    (0, b"version https://git-lfs", "a Git LFS pointer", "; run git lfs pull"),
    (0, b"\x1f\x8b", "compressed with gzip", "; unpack it"),
    (0, b"PK\x03\x04", "a ZIP archive", "; unpack it"),
)


def describe_unread(file: IO[bytes]) -> str | None:
    """The type of a file from its first bytes, and what to do with it; None if unknown.

    Args:
        file: a file that Pillow does not recognize as a picture.
    """
    file.seek(0)
    head = file.read(_HEAD)
    for place, mark, what, mend in _MARKS:
        if head[place : place + len(mark)].lower() == mark.lower():
            return f"it is {what}{mend}"
    return None
