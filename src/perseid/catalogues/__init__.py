"""Catalogues in other forms: which rows and columns, and the formats that other tools open."""
