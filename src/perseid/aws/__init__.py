"""Running on AWS."""
