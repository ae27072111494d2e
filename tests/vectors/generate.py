"""Makes the vectors; needs veritysetup, fsverity and openssl (`python -m tests.vectors.generate`).

Results come from those tools wherever one of them computes the thing; where none does, from this project.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.vectors.inputs import store
from tests.vectors.make_blobs import blobs, images
from tests.vectors.make_formats import chunkmaps, descriptors, digests, records, trees
from tests.vectors.make_signatures import signatures, statements


def main() -> None:
    """Write all files."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        made = [digests(), trees(directory), descriptors(), chunkmaps(), records(), statements()]
        made += [signatures(directory), blobs(directory), images(directory)]
    for vectors in made:
        store(vectors.name, vectors.vectors)
    store("index.json", [entry for vectors in made for entry in vectors.index])


if __name__ == "__main__":
    main()
