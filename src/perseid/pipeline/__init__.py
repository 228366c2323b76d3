"""The run request, the layout of a run's objects, and the three steps."""
