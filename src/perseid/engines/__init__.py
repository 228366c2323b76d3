"""Where the steps of a run are executed: one small interface, and one implementation per backend.

`perseid.engines.base` defines the interface, `perseid.engines.local` is the engine for this
machine, and `perseid.engines.driver` drives a whole run on any engine. This file imports nothing:
a worker process starts in milliseconds because it loads only what it needs.
"""
