"""Pages to look at: data in, one HTML file out that needs no network.

``page`` is the shell that all of them share, ``explorer`` the token explorer.
"""

from sparsedet.report.explorer import RATIOS, Explorer, explain

__all__ = ["RATIOS", "Explorer", "explain"]
