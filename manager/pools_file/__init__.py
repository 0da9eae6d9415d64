"""`pools.toml`: several pools in one file. Reading it, its schema, and noticing that it changed.

Every key is an option of the command line: nothing about an option is said here again. What is
done with the pools is `manager.loop`'s.
"""
