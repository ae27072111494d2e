"""Reports: what is in an image, how two images differ, and the documents that scripts rely on.

Commands import the modules that they need: a build is over before all of this would be loaded.
"""
