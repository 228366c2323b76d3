"""The Python interface behind ``import perseid``, which imports these modules only on first use."""
