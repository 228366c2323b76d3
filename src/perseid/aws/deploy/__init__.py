"""Make, change, check and remove a stack: packages, template, change sets and policies."""
