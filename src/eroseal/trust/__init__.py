"""Verification: numbered steps without I/O, policies, and the types that only a verifier makes.

`image` opens blobs and images, `verifier` has the steps, `policy` what a user accepts, `scan` verifies whole blobs.
Nothing is imported here, so that a command loads only what it uses.
"""
