"""The report of training runs: one HTML file of what their folders hold."""

from sparsedet.report.runs.folder import RunError, find_runs, is_run
from sparsedet.report.runs.writing import Report, write_report

__all__ = ["Report", "RunError", "find_runs", "is_run", "write_report"]
