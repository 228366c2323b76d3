"""Sources of measurements: run folders, published result trees, logs, histories.

`load_runs` reads any of them as `perseid.measure.measured_run.MeasuredRun`, the one type that
tables, charts and pages are made from.
"""
