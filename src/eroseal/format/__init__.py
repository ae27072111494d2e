"""On-disk and wire formats: bytes to values and back, without I/O and without policy."""
