"""Explanations of the figures of a report, as they appear beside them."""

from __future__ import annotations

from perseid.measure.present.run_tables import USED_NOTE

METRICS = {
    "mae": ("MAE", "mean |z_pred - z_spec|"),
    "mse": ("MSE", "mean (z_pred - z_spec)²"),
    "bias": ("Bias", "mean dz, dz = (z_pred - z_spec) / (1 + z_spec)"),
    "nmad": ("NMAD", "1.48 × median |dz - median dz|; “precision” in the papers"),
    "r2": ("R²", "1 - MSE / variance of z_spec: grows with the spread of the sample"),
    "outliers": ("Outliers", "share with |dz| > 0.15"),
    "outliers_low_z": ("Outliers, near", "share with |dz| > 0.05"),
}
PLACES = {"mse": 6, "r2": 4}
"""Decimal places of metrics that do not have five."""
THROUGHPUT = {
    "a": ("Throughput (a), model", "sum over ranks of bits / model time"),
    "b": ("Throughput (b), map", "all bits / time of the map: first start to last end"),
    "c": ("Throughput (c), whole run", "all bits / time of the whole run"),
}
DEFINITIONS = {
    "Complete": "Every rank left its record, every partition was read, every row is in the "
    "catalogue exactly once. Anything less is incomplete.",
    "Duration of an invocation": "As in Lambda's REPORT line: time in the handler, without init. "
    "All invocations count, including failed ones and retries; none is left out.",
    "Billed": "Configured memory × billed duration (handler and init, whole milliseconds), plus "
    "requests, state transitions, storage, Fargate, IPv4 and logs.",
    "Cost by memory used": USED_NOTE.partition(": ")[2],
    "Cost of a local run": "What the same invocations, as long as they took on this machine, "
    "would have cost on AWS; no free tier. Another machine has other durations.",
    "Stages": "Wall-clock time of a rank. Fetch and decode run beside inference, so stages do "
    "not add up to the total.",
    "Transport": "How the ranks' statistics were merged: directly between the ranks, through the "
    "rendezvous' relay, or through the store. Collectives: seconds of the slowest rank in them, "
    "waiting for the others included.",
    "Anomaly score": "Mahalanobis distance of an object's features from those of the whole "
    "survey, divided by the root of their number: about 1 for a plain object "
    "of a large survey.",
    "ROC AUC": "Probability that an object with the label scores above one with label 0; 0.5 is "
    "chance.",
    "Average precision": "Area under precision against recall; chance is the share of the label "
    "among its objects and those with label 0, so it is lower for rarer labels.",
    "Calibration error": "Mean over objects of the difference between how often the predicted "
    "class is right and its probability, in 15 bins of that probability.",
    "CRPS": "Continuous ranked probability score: integral of (CDF - step at the true value)²; the "
    "absolute error of a point prediction.",
    "PIT": "Predicted probability of values below the true one: uniform over objects where "
    "distributions are calibrated.",
    "Bits": "32 bits per value of the images and magnitudes that went through the model.",
}
