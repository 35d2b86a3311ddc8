"""Pages to look at: data in, one HTML file out that needs no network.

``page`` is the shell that all of them share, ``explorer`` the token explorer, ``runs`` the report
of training runs.
"""

from sparsedet.report.explorer import RATIOS, Explorer, explain
from sparsedet.report.runs import Report, RunError, write_report

__all__ = ["RATIOS", "Explorer", "Report", "RunError", "explain", "write_report"]
