"""Running on AWS: handlers, packaging, stack, rendezvous. boto3 is imported here and nowhere else.

Importing this package imports nothing: a worker's zip holds no boto3.
"""
