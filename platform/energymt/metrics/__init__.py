"""Metrics: how good translations are, and how sure one may be of a difference."""

from energymt.metrics.significance import Comparison, Interval, compare, interval
from energymt.metrics.translation import Report, Scores, Statistics, evaluate, report, statistics

__all__ = [
    "Comparison",
    "Interval",
    "Report",
    "Scores",
    "Statistics",
    "compare",
    "evaluate",
    "interval",
    "report",
    "statistics",
]
