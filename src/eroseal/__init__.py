"""Sealed EROFS images: verified, signed, deduplicated."""

__version__ = "0.1.0"
