"""What Lambda calls: one module a function, each with ``handler(event, context)``."""
