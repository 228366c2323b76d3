"""torch.distributed over our communicator; ``import perseid.torch`` registers it."""
