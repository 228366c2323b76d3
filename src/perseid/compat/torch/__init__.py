"""A torch.distributed backend on our communicator; ``import perseid.torch`` registers it."""
