"""Where the steps run: one small interface, one file a backend.

`perseid.engines.base` is the interface, `perseid.engines.local` this machine's engine,
`perseid.engines.driver` a whole run on any engine. Nothing is imported here: a worker process
starts in milliseconds because it loads what it needs and no more.
"""
