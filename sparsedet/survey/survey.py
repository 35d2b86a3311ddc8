"""The report, the warnings and the suggestions for a data set and a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sparsedet.data import AnnotatedDataset
from sparsedet.survey.facts import describe_part
from sparsedet.survey.looking import describe_look
from sparsedet.survey.misfits import find_misfits
from sparsedet.survey.numbers import InputSizes, Part, input_sizes
from sparsedet.survey.report import describe_classes, describe_parts, describe_run
from sparsedet.survey.settings import Settings, read_settings
from sparsedet.survey.suggest import Suggestion, seen_by, suggest

__all__ = ["Survey"]


@dataclass(frozen=True)
class Survey:
    """A data set as a model with certain settings will see it.

    Attributes:
        parts: parts of the data set, the training part first.
        sizes: the sizes at the model's input of each part, or why they are unknown.
        settings: settings of the config.
    """

    parts: tuple[Part, ...]
    sizes: Mapping[str, InputSizes | str]
    settings: Settings

    @classmethod
    def of(cls, sets: Mapping[str, tuple[AnnotatedDataset, Any]], cfg: Any) -> Survey:
        """Count and measure; no picture is read.

        Args:
            sets: the data set and the loader's mapper of each part, in the order to report.
            cfg: the config of the run.
        """
        parts = tuple(Part.of(name, dataset) for name, (dataset, _) in sets.items())
        seed = cfg.train.get("seed") or 0
        sizes = {part.name: input_sizes(part, sets[part.name][1], seed=seed) for part in parts}
        return cls(parts, sizes, read_settings(cfg))

    @cached_property
    def suggestion(self) -> Suggestion:
        """Overrides that fit the data set."""
        return suggest(self.parts, self.settings)

    def report(self) -> str:
        """Tables of the classes, and of sizes in the file and at the model's input."""
        return "\n\n".join(
            [
                describe_classes(self.parts),
                describe_parts(self.parts, self.sizes),
                "\n".join([*describe_run(self.parts, self.settings), *self._look()]),
            ]
        )

    def facts(self) -> dict[str, Any]:
        """The same in JSON's types: `survey`, a list of the parts, and `misfits`."""
        parts = [describe_part(part, self.sizes[part.name]) for part in self.parts]
        return {"survey": parts, "misfits": self.misfits()}

    def _look(self) -> list[str]:
        settings = self.settings
        seen = seen_by(self.parts[0], settings, settings.test_short_side, settings.max_size)
        return [] if seen is None else describe_look(seen)

    def misfits(self) -> list[str]:
        """Problems, each with the override that solves it, as sentences."""
        return find_misfits(self.parts, self.sizes, self.settings, self.suggestion)
