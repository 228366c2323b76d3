"""Message passing between workers."""
