"""What Lambda calls: one module per function, each with ``handler(event, context)``."""
