"""Sealing: blobs, images made by other tools, signatures."""
