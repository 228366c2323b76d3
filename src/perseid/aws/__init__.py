"""Running on AWS. boto3 is imported here and nowhere else.

`handlers`: the functions that Lambda calls. `deploy`: make, change and remove a stack. `observe`:
read logs and histories of its runs. `engine` and `executions`: run on it.

Importing this package imports nothing: a worker's zip holds no boto3.
"""
