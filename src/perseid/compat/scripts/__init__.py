"""Script mode: run the programs of the existing executor in the way that it runs them."""
