"""Training an AstroMAE, in torch: pre-training of the encoder, then redshifts."""
