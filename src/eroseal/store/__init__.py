"""Stores: where sealed blobs and images live, and how references name them."""
