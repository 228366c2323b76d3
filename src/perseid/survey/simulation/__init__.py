"""A simulated survey: real SDSS magnitudes and redshifts, images rendered to match them.

`simulate` writes a whole survey, `objects` renders any objects of one, `galaxies` draws their
components, `render` computes the light on the pixels, `anomalies` adds labeled anomalies, and
`sdss` holds the real table and the camera's constants.
"""
