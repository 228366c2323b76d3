"""REPORT lines, prices, tables, sweeps, plots and the HTML report."""
