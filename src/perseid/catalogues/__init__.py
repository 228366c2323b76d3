"""Export of catalogues: the choice of rows and columns, and formats for other tools."""
