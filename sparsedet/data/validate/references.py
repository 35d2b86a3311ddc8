"""Ids and what refers to them, be they written as numbers or as texts."""

from collections.abc import Collection, Iterable
from typing import Any

from sparsedet.data.validate.entries import image_id
from sparsedet.data.validate.fields import whole
from sparsedet.data.validate.findings import Findings

Id = int | str


class References:
    """Finds the entry that a value means.

    Args:
        key: the key that holds the value, such as `image_id`.
        listed: the list of entries, such as `images`.
        ids: of these entries.
    """

    def __init__(self, key: str, listed: str, *, ids: Collection[Id]) -> None:
        self.key, self.listed = key, listed
        self._ids = ids
        self._alike: dict[Id, Id | None] = {}
        for identity in ids:  # two ids that are read alike, as 1 and "1", are told by type alone
            form = _form(identity)
            self._alike[form] = None if form in self._alike else identity

    def find(self, value: Any, label: str, findings: Findings) -> Id | None:
        """The id that a value means; None if there is none, or the value is no id.

        Where one of the two is a text and the other a number, a warning says so.
        """
        if type(value) is int and value in self._ids:  # nearly all
            return value
        identity = image_id(value)
        if identity is None or identity in self._ids:
            return identity
        found = self._alike.get(_form(identity))
        if found is None or type(found) is type(identity):  # "01" is another text than "1"
            return None
        if isinstance(identity, str):
            fault = f"is a string; it is read as the number, as every 'id' in '{self.listed}' is."
        else:
            fault = f"is a number, and the 'id' in '{self.listed}' is a string; they are matched."
        findings.warn(label, f"its '{self.key}' {fault}")
        return found

    def shift(self, missing: Collection[Any], used: Collection[Id]) -> str:
        """A sentence, after a space, if values count from another number than ids; or nothing.

        Args:
            missing: values that are no id.
            used: ids that values refer to.
        """
        ids = [each for each in self._ids if isinstance(each, int)]
        if not ids or len(ids) < len(self._ids) or max(ids) - min(ids) >= len(ids):
            return ""
        ends = {max(ids) + 1: (min(ids), "large"), min(ids) - 1: (max(ids), "small")}
        missed = whole(next(iter(missing), None))
        if len(missing) != 1 or missed not in ends:
            return ""
        unused, word = ends[missed]
        if unused in used:
            return ""
        return (
            f" Nothing refers to {unused} in '{self.listed}', so each '{self.key}' may be one too "
            f"{word}: look with sparsedet check-data --preview 9 whether boxes and pictures fit."
        )

    def types_differ(self, values: Iterable[Any]) -> str | None:
        """A sentence on texts that refer to numbers, or the reverse; None where types agree."""
        given = {isinstance(value, str) for value in values}
        own = {isinstance(identity, str) for identity in self._ids}
        if len(given) != 1 or len(own) != 1 or given == own:
            return None
        names = {True: "a string", False: "a number"}
        return (
            f"its '{self.key}' is {names[given.pop()]}, and every 'id' in '{self.listed}' is "
            f"{names[own.pop()]}, such as {next(iter(self._ids))!r}. Write the 'id' of the entry "
            "that is meant."
        )


def _form(identity: Id) -> Id:
    """What a number and its text have in common."""
    number = whole(identity)
    return identity if number is None else number
