"""mpi4py's interface, implemented with our communicator; `perseid.compat.MPI` exposes it."""
