"""mpi4py's interface on our communicator; ``from perseid.compat import MPI`` is its face."""
