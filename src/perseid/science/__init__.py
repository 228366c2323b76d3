"""What comes out: redshift metrics and anomaly scores."""
