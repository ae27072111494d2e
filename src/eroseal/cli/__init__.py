"""The command line: one module a verb, each a thin face of a library function."""
