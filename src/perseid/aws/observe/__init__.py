"""Read what AWS recorded about a run (logs, histories, progress) and keep it in the run's
folder."""
