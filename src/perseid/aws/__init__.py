"""Running on AWS. boto3 is imported here and nowhere else.

`handlers` holds the functions that Lambda calls. `deploy` makes, changes and removes a stack,
`observe` reads logs and histories of its runs, and `engine` and `executions` start and follow runs.

Importing this package imports nothing else, because a worker's zip contains no boto3.
"""
