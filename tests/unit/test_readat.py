"""Files that are no files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eroseal.errors import FormatError, NotFoundError
from eroseal.readat import FileAt


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FormatError, match="is not a file"):  # and nobody waits for a writer
        FileAt(tmp_path / "fifo")


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        FileAt(tmp_path / "missing")
