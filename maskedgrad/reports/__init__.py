"""What trains and what has learned: counts, nearest words, and reports of rows."""

from maskedgrad.reports.counting import summary
from maskedgrad.reports.learning import RowChange, RowReport, row_report
from maskedgrad.reports.nearest import Nearest, Neighbour, nearest

__all__ = [
    "Nearest",
    "Neighbour",
    "RowChange",
    "RowReport",
    "nearest",
    "row_report",
    "summary",
]
