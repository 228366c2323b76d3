"""Read what AWS recorded of a run: logs, histories, progress; keep it in the run's folder."""
