"""`marconi doctor --release`: which of the names that the extension relies on another SGLang release moves."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from marconi_ext.errors import BadInputError
from marconi_ext.releases.compare import BREAKS, Change, compare, compare_options
from marconi_ext.releases.sources import Sources, from_folder, from_wheel
from marconi_ext.releases.uses import find_uses
from marconi_ext.results.provenance import installed

_VERSION = re.compile(r"\d+(\.\d+)+\w*")


@dataclass(frozen=True)
class ReleaseReport:
    """What was compared (labels), how many names, and what changed."""

    release: str
    baseline: str
    names: int
    changes: Sequence[Change]

    @property
    def breaks(self) -> int:
        """Changes that somebody has to act on before the release can be supported."""
        return sum(change.finding in BREAKS for change in self.changes)

    def as_json(self) -> dict:
        changes = [asdict(change) for change in self.changes]
        return {**asdict(self), "breaks": self.breaks, "changes": changes}


def examine_release(release: str, against: str | None = None) -> ReleaseReport:
    """Compare a release with a supported one, from sources alone.

    release, against: a wheel, a folder that holds `sglang/`, or a version to download; against: by default the
    installed SGLang
    Raises: BadInputError if one can't be had.
    """
    with tempfile.TemporaryDirectory(prefix="marconi-release-") as folder:
        found = sources_of(release, "--release", Path(folder))
        baseline = sources_of(against, "--against", Path(folder)) if against else installed_sources()
        ours = extension_sources()
        uses = find_uses(ours, baseline)
        changes = [*compare(found, baseline, uses), *compare_options(found, ours)]
    return ReleaseReport(found.label, baseline.label, len(uses), changes)


def sources_of(what: str, flag: str, folder: Path) -> Sources:
    """folder: where a download goes. Raises: BadInputError that names the flag."""
    path = Path(what)
    try:
        if path.is_dir():
            return from_folder(path, path.name)
        if path.is_file():
            return from_wheel(path)
    except BadInputError as error:
        raise BadInputError(f"{flag}: {error}") from None
    if not _VERSION.fullmatch(what):
        raise BadInputError(f"{flag} {what}: no wheel, no folder and no version such as 0.5.23")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        f"sglang=={what}",
        "-d",
        str(folder),
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    wheel = next(folder.glob(f"sglang-{what}-*.whl"), None)
    if run.returncode or wheel is None:
        said = next((line for line in run.stderr.splitlines() if line.startswith("ERROR: ")), "no wheel came")
        said = said.removeprefix("ERROR: ").split(" (from ")[0]
        raise BadInputError(
            f"{flag} {what}: pip couldn't download it ({said}); give the wheel's path instead"
        )
    return from_wheel(wheel)


def installed_sources() -> Sources:
    """Raises: BadInputError without SGLang."""
    spec = find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        raise BadInputError("no SGLang is installed to compare with: give --against VERSION|WHEEL|FOLDER")
    where = Path(next(iter(spec.submodule_search_locations)))
    return from_folder(where.parent, f"{installed('sglang')} (installed)")


def extension_sources() -> Sources:
    """The sources of our own hooks."""
    spec = find_spec("sglang_hooks")
    assert spec is not None and spec.submodule_search_locations
    return from_folder(
        Path(next(iter(spec.submodule_search_locations))).parent, "marconi-ext", "sglang_hooks"
    )
