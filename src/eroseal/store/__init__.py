"""Stores: where sealed blobs and images live, and how references name them.

`resolve` opens what a reference names; `local` is the native store; `single` has the files that hold one image each;
`fsck` checks a store. Nothing is imported here, so that a command loads only what it uses.
"""
