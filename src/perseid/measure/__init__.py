"""Measurements of runs: REPORT lines, prices, plans, tables, sweeps, charts and the HTML report."""
