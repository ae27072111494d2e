"""The optional native core; everything else is in pyproject.toml.

The extension is optional in the strict sense: without its source, a compiler or Python's headers the
package installs all the same and hashes through hashlib. It keeps to the stable ABI of Python 3.11, so
that one binary serves every later version.
"""

from pathlib import Path

from setuptools import Extension, setup

SOURCE = "src/eroseal/crypto/_native.c"

extensions = []
if (Path(__file__).parent / SOURCE).exists():
    extensions.append(
        Extension(
            "eroseal.crypto._native",
            [SOURCE],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-O3", "-std=c11", "-Wall", "-Wextra"],
            optional=True,
            py_limited_api=True,
        )
    )

setup(
    ext_modules=extensions,
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if extensions else {},
)
