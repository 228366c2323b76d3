"""The Lambda functions: one module per function, each with ``handler(event, context)``."""
