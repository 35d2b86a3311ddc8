"""What a model will see of a data set: numbers, misfits with their mends, settings that fit.

Nothing here opens a picture, but for the preview sheet.
"""

from sparsedet.survey.preview import preview_sheet
from sparsedet.survey.suggest import Override, Suggestion
from sparsedet.survey.survey import Survey

__all__ = ["Override", "Suggestion", "Survey", "preview_sheet"]
