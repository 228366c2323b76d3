"""The algorithms, one file a collective; they see calls and ports, never a socket."""
