"""Script mode: programs of the existing executor, run as it runs them."""
