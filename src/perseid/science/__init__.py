"""What comes out: redshift metrics and anomaly scores."""

from perseid.science.anomaly import GROUPS, Metric, group_columns, mahalanobis, ranking
from perseid.science.baselines import Interval, NearestNeighbours, bootstrap_difference
from perseid.science.detection import Detection, average_precision, detection, roc_auc
from perseid.science.metrics import RedshiftMetrics, redshift_metrics, scaled_error
from perseid.science.moments import Moments, Partial

__all__ = [
    "GROUPS",
    "Detection",
    "Interval",
    "Metric",
    "Moments",
    "NearestNeighbours",
    "Partial",
    "RedshiftMetrics",
    "average_precision",
    "bootstrap_difference",
    "detection",
    "group_columns",
    "mahalanobis",
    "ranking",
    "redshift_metrics",
    "roc_auc",
    "scaled_error",
]
