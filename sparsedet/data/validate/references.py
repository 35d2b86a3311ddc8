"""Match references with ids, which may be numbers or strings."""

from collections.abc import Collection, Iterable
from typing import Any

from sparsedet.data.validate.entries import image_id
from sparsedet.data.validate.fields import whole
from sparsedet.data.validate.findings import Findings

Id = int | str


class References:
    """Finds the entry to which a value refers.

    Args:
        key: the key of the value, such as `image_id`.
        listed: the list of entries, such as `images`.
        ids: ids of these entries.
    """

    def __init__(self, key: str, listed: str, *, ids: Collection[Id]) -> None:
        self.key, self.listed = key, listed
        self._ids = ids
        self._alike: dict[Id, Id | None] = {}
        for identity in ids:  # ids such as 1 and "1" are only distinguished by their type
            form = _form(identity)
            self._alike[form] = None if form in self._alike else identity

    def find(self, value: Any, label: str, findings: Findings) -> Id | None:
        """The id to which a value refers; None if there is none, or the value cannot be an id.

        If one of the two is a string and the other a number, a warning says so.
        """
        if type(value) is int and value in self._ids:  # the usual case
            return value
        identity = image_id(value)
        if identity is None or identity in self._ids:
            return identity
        found = self._alike.get(_form(identity))
        if found is None or type(found) is type(identity):  # the strings "01" and "1" differ
            return None
        if isinstance(identity, str):
            fault = f"is a string; it is read as a number, like every 'id' in '{self.listed}'."
        else:
            fault = f"is a number, but the 'id' in '{self.listed}' is a string; they are matched."
        findings.warn(label, f"its '{self.key}' {fault}")
        return found

    def shift(self, missing: Collection[Any], used: Collection[Id]) -> str:
        """A sentence, after a space, if values seem to be shifted by one; or empty.

        Args:
            missing: values that are not ids.
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
            f"{word}: check with sparsedet check-data --preview 9 whether boxes fit the pictures."
        )

    def types_differ(self, values: Iterable[Any]) -> str | None:
        """A sentence about strings that refer to numbers, or the reverse; None if types agree."""
        given = {isinstance(value, str) for value in values}
        own = {isinstance(identity, str) for identity in self._ids}
        if len(given) != 1 or len(own) != 1 or given == own:
            return None
        names = {True: "a string", False: "a number"}
        return (
            f"its '{self.key}' is {names[given.pop()]}, but every 'id' in '{self.listed}' is "
            f"{names[own.pop()]}, such as {next(iter(self._ids))!r}. Write the 'id' of the entry."
        )


def _form(identity: Id) -> Id:
    """A common form of a number and its string."""
    number = whole(identity)
    return identity if number is None else number
