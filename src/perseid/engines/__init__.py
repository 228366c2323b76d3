"""Where the steps run: one small interface, one file a backend."""
