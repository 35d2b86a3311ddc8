"""What a model will see of a data set: counts and sizes, warnings of misfits, settings that fit.

Only the preview sheet opens pictures.
"""

from sparsedet.survey.preview import preview_sheet
from sparsedet.survey.suggest import Override, Suggestion
from sparsedet.survey.survey import Survey

__all__ = ["Override", "Suggestion", "Survey", "preview_sheet"]
