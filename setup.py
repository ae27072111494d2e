"""The optional native parts; everything else is in pyproject.toml.

The extensions are optional in the strict sense: without their sources, a compiler or Python's headers the package
installs all the same, hashes through hashlib and reads files in Python. They keep to the stable ABI of Python 3.11,
so that one binary serves every later version.
"""

from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
PACKAGE = ROOT / "src/eroseal"


def files(*patterns: str) -> list[str]:
    """Give source files, relative to the project as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in PACKAGE.glob(pattern))


def extension(name: str, sources: list[str], depends: list[str]) -> list[Extension]:
    """Give one optional extension, or none without its sources."""
    if not sources:
        return []
    return [
        Extension(
            name,
            sources,
            depends=depends,
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-O3", "-g0", "-Wall", "-Wextra"],
            optional=True,
            py_limited_api=True,
        )
    ]


extensions = [
    *extension("eroseal.crypto._native", files("crypto/_native.c", "crypto/native/*.c"), files("crypto/native/*.h")),
    *extension("eroseal.build._scan", files("build/_scan.c"), []),
]

setup(
    ext_modules=extensions,
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if extensions else {},
)
