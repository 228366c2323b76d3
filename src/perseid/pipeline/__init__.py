"""The run request, the layout of a run's objects in the store, and the run's three steps."""
