"""Train an AstroMAE in torch: pre-train the encoder, then train on redshifts."""
