"""Where measurements come from: run folders, published result trees, logs, histories.

`load_runs` reads any of them and gives `perseid.measure.runs.MeasuredRun`, the one type that the
presentation works from.
"""
