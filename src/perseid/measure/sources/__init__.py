"""Where measurements come from: run folders, published result trees, logs, histories.

`load_runs` reads any of them and gives `MeasuredRun` of `perseid.measure.measured_run`, the one
type that the presentation works from.
"""
