"""Where a run's results go."""

from datetime import UTC, datetime
from pathlib import Path

from marconi_ext.errors import BadInputError
from marconi_ext.results.folder import RUN_FILE


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def free_folder(wanted: Path | None, kind: str) -> Path:
    """The folder asked for, or one named after the time; not made yet. Raises BadInputError if it is in use."""
    path = wanted or Path(f"marconi-{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    if (path / RUN_FILE).exists() or any(path.glob(f"*/{RUN_FILE}")):
        raise BadInputError(f"--out {path}: holds results already; name another folder or remove it")
    return path


def make_folder(path: Path) -> Path:
    """Make a folder if it isn't there. Raises BadInputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(f"--out {path}: {error.strerror}") from None
    return path


def new_folder(wanted: Path | None, kind: str) -> Path:
    """A free folder, made now. Raises BadInputError."""
    return make_folder(free_folder(wanted, kind))
