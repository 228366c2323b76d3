"""Metrics of redshifts, classes and distributions, and anomaly scores."""

from perseid.science.anomaly import GROUPS, Metric, group_columns, mahalanobis, ranking
from perseid.science.baselines import Interval, NearestNeighbors, bootstrap_difference
from perseid.science.classification import ClassificationCounts, ClassScores, ReliabilityBin
from perseid.science.detection import Detection, average_precision, detection, roc_auc
from perseid.science.distributions import (
    Distributions,
    conformal_width,
    interval_coverage,
    pit_histogram,
)
from perseid.science.metrics import RedshiftMetrics, redshift_metrics, scaled_error
from perseid.science.moments import Moments, Partial
from perseid.science.neighbors import Neighbors, nearest

__all__ = [
    "GROUPS",
    "ClassScores",
    "ClassificationCounts",
    "Detection",
    "Distributions",
    "Interval",
    "Metric",
    "Moments",
    "NearestNeighbors",
    "Neighbors",
    "Partial",
    "RedshiftMetrics",
    "ReliabilityBin",
    "average_precision",
    "bootstrap_difference",
    "conformal_width",
    "detection",
    "group_columns",
    "interval_coverage",
    "mahalanobis",
    "nearest",
    "pit_histogram",
    "ranking",
    "redshift_metrics",
    "roc_auc",
    "scaled_error",
]
