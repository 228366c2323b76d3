"""perseid: a trained model over a survey of cutouts, as many small workers."""

__version__ = "0.2.0"
