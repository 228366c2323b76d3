"""Measure in a real account, for less than a dollar, what only AWS itself can show.

`proof` defines the lines of the result. `budget` keeps the cost below the cap. `functions` and
`survey_map` measure single lines, `prove` all of them in order, between deploying and removing the
stacks. `page` renders the result.
"""
