"""Survey a data set: counts and sizes at the model's input, warnings, and settings that fit.

Only the preview sheet reads pictures.
"""

from sparsedet.survey.preview import preview_sheet
from sparsedet.survey.suggest import Override, Suggestion
from sparsedet.survey.survey import Survey

__all__ = ["Override", "Suggestion", "Survey", "preview_sheet"]
