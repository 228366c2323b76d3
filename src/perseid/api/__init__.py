"""What ``import perseid`` offers, one idea a module; `perseid` itself imports none of it early."""
