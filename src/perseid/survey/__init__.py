"""What goes in: cutouts, one file a format, splitting into partitions, a simulated survey."""
