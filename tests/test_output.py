"""What can't be written at a command's end is told at its begin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from marconi_ext.errors import BadInputError
from marconi_ext.output import check_writable


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.json")
    assert list(tmp_path.iterdir()) == []
    old = tmp_path / "old.json"
    old.write_text("results")
    check_writable(old)
    assert old.read_text() == "results"
    check_writable(Path(os.devnull))
    check_writable(None)


def test_a_folder_without_the_right_to_write_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)  # root may write everywhere
    with pytest.raises(BadInputError, match=r"--csv .*out\.csv: Permission denied"):
        check_writable(tmp_path / "out.csv", "--csv")


@pytest.mark.parametrize("place", [".", "none/out.json"])
def test_a_folder_is_no_file_and_must_be_there(tmp_path: Path, place: str) -> None:
    with pytest.raises(BadInputError, match="not a file in an existing folder"):
        check_writable(tmp_path / place)
