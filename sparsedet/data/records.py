"""Records in memory that processes share."""

import pickle
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np


class Records(Sequence[dict[str, Any]]):
    """Read-only records of a data set; each access makes a new dict.

    They are packed in one array, so that worker processes share the memory instead of copying each
    record.

    Args:
        records: dicts with `annotations`, whose `category_id` is a class index.
    """

    def __init__(self, records: Iterable[dict[str, Any]]) -> None:
        blobs = [pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL) for record in records]
        self._data = np.frombuffer(b"".join(blobs), dtype=np.uint8)
        self._ends = np.cumsum([len(blob) for blob in blobs], dtype=np.int64)
        self._places = np.arange(len(blobs))
        self._classes: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> "Records": ...

    def __getitem__(self, index: int | slice) -> "dict[str, Any] | Records":
        if isinstance(index, slice):
            return self._view(self._places[index], self._classes)
        place = self._places[index]
        begin = self._ends[place - 1] if place > 0 else 0
        record = pickle.loads(self._data[begin : self._ends[place]].data)
        if self._classes is not None:
            for entry in record["annotations"]:
                entry["category_id"] = self._classes[entry["category_id"]]
        return record

    def with_classes(self, classes: Sequence[int]) -> "Records":
        """The same records with `classes[index]` instead of each class index."""
        if self._classes is not None:
            classes = [classes[number] for number in self._classes]
        return self._view(self._places, tuple(classes))

    def _view(self, places: np.ndarray, classes: tuple[int, ...] | None) -> "Records":
        view = object.__new__(Records)
        view._data, view._ends, view._places, view._classes = (
            self._data,
            self._ends,
            places,
            classes,
        )
        return view
