"""The optional native core; everything else is in pyproject.toml.

The extension is optional in the strict sense: without its source, a compiler or Python's headers the
package installs all the same and hashes through hashlib. It keeps to the stable ABI of Python 3.11, so
that one binary serves every later version.
"""

from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
CRYPTO = ROOT / "src/eroseal/crypto"


def files(*patterns: str) -> list[str]:
    """Give the files of the native core, relative to the project as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in CRYPTO.glob(pattern))


sources = files("_native.c", "native/*.c")
extensions = []
if sources:
    extensions.append(
        Extension(
            "eroseal.crypto._native",
            sources,
            depends=files("native/*.h"),
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-O3", "-g0", "-Wall", "-Wextra"],
            optional=True,
            py_limited_api=True,
        )
    )

setup(
    ext_modules=extensions,
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if extensions else {},
)
