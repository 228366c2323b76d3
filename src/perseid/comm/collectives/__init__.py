"""The algorithms of the collectives, one module each; they use calls and ports, never a socket."""
