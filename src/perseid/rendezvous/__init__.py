"""How workers find each other."""
