"""A package of somebody else's, installed into a folder on sys.path."""

from pathlib import Path


def install(folder: Path, name: str, entries: str, code: str) -> None:
    """What pip leaves of a package in site-packages, as far as entry points need it."""
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    about = folder / f"{name}-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text(entries, encoding="utf-8")
