"""What a release moves of the names that the extension relies on: planted changes are found, and nothing else."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from marconi_ext.commands.doctor.release import extension_sources, installed_sources
from marconi_ext.releases.compare import Finding, compare, compare_options, decided_options, options_of
from marconi_ext.releases.sources import Sources, from_wheel
from marconi_ext.releases.uses import Use, UseKind, find_uses


def sources(**texts: str) -> Sources:
    """Modules by their path with `__` for `/`, as in sglang__srt__cache."""
    files = {f"{name.replace('__', '/')}.py": textwrap.dedent(text) for name, text in texts.items()}
    return Sources("made up", {path: lambda text=text: text for path, text in files.items()})


THEIRS = dict(
    sglang__srt__cache="""
        from sglang.srt.base import Base as _Root

        class Cache(_Root):
            _size: int = 0

            def evict(self, node, reason):
                return self._drop(node)
    """,
    sglang__srt__base="""
        class Base:
            def insert(self, key, *, page=1, **rest):
                pass

            @classmethod
            def made(cls, value):
                pass
    """,
    sglang__srt__server_args="class ServerArgs:\n    port: int = 0\n    host: str = ''\n",
)
OURS = sources(
    sglang_hooks__cache="""
        from sglang.srt.cache import Cache
        from .hooks import Hook

        _HOME = "sglang.srt.base"

        class Between(Cache):
            def evict(self, node, reason): ...

        class Ours(Between):
            def insert(self, key, *, page=1, **rest):
                self._mine = node._size

            def of_our_own(self): ...

        HOOKS = (Hook(f"{_HOME}.Base.made", "around", f, why="", parameters="value"),
                 *(Hook(f"{_HOME}.{name}", "after", f, why="", parameters=None) for name in ("Base", "f")))
    """,
    sglang_hooks__options="""
        OPTIONS = (Option("port", Decision.SUPPORTED, ""),)
        WITHOUT_INFLUENCE = {"serving": ("host",)}
    """,
)


def test_uses_are_read_from_our_sources() -> None:
    assert {(use.kind, use.target, use.parameters) for use in find_uses(OURS, sources(**THEIRS))} == {
        (UseKind.IMPORT, "sglang.srt.cache.Cache", None),
        (UseKind.HOOK, "sglang.srt.base.Base.made", "value"),
        (UseKind.HOOK, "sglang.srt.base.Base", None),
        (UseKind.HOOK, "sglang.srt.base.f", None),
        (UseKind.OVERRIDE, "sglang.srt.cache.Cache.evict", None),
        (UseKind.OVERRIDE, "sglang.srt.cache.Cache.insert", None),
        (UseKind.PRIVATE, "_size", None),
    }


@pytest.mark.parametrize(
    ("module", "before", "after", "expected"),
    [
        ("sglang__srt__cache", "def evict", "def evict_one", (Finding.GONE, "sglang.srt.cache.Cache.evict")),
        ("sglang__srt__cache", "node, reason", "node", (Finding.PARAMETERS, "sglang.srt.cache.Cache.evict")),
        ("sglang__srt__cache", "_drop(node)", "_drop()", (Finding.BODY, "sglang.srt.cache.Cache.evict")),
        ("sglang__srt__cache", "_size", "_length", (Finding.GONE, "_size")),
        ("sglang__srt__base", "page=1", "pages=1", (Finding.PARAMETERS, "sglang.srt.cache.Cache.insert")),
        ("sglang__srt__base", "**rest", "rest=0", (Finding.BODY, "sglang.srt.cache.Cache.insert")),
        ("sglang__srt__base", "cls, value", "cls, values", (Finding.PARAMETERS, "sglang.srt.base.Base.made")),
        ("sglang__srt__cache", "class Cache", "class Caches", (Finding.GONE, "sglang.srt.cache.Cache")),
    ],
)
def test_a_planted_change_is_found(module: str, before: str, after: str, expected: tuple) -> None:
    baseline = sources(**THEIRS)
    uses = [use for use in find_uses(OURS, baseline) if use.target != "sglang.srt.base.f"]
    assert compare(baseline, baseline, uses) == []
    changed = sources(**THEIRS | {module: THEIRS[module].replace(before, after)})
    assert expected in {(change.finding, change.target) for change in compare(changed, baseline, uses)}


def test_options_are_decided() -> None:
    assert compare_options(sources(**THEIRS), OURS) == []
    other = sources(sglang__srt__server_args="class ServerArgs:\n    brand_new: int = 0\n")
    assert [(change.finding, change.target) for change in compare_options(other, OURS)] == [
        (Finding.GONE, "port"),
        (Finding.UNDECIDED, "brand_new"),
        (Finding.DROPPED, "host"),
    ]


def test_a_re_export_leads_home() -> None:
    theirs = sources(
        sglang__srt__new="from .old import *\nfrom .old import f as g\n", sglang__srt__old="def f(x): ...\n"
    )
    assert theirs.home("sglang.srt.new.g") == "sglang.srt.old.f"
    assert theirs.find("sglang.srt.new.nothing") is None


@pytest.mark.sglang
class TestInstalled:
    """The real thing: our hooks against the installed SGLang."""

    def test_nothing_moved_in_the_supported_release(self) -> None:
        baseline, ours = installed_sources(), extension_sources()
        uses = find_uses(ours, baseline)
        assert {use.kind for use in uses} == set(UseKind)
        assert [*compare(baseline, baseline, uses), *compare_options(baseline, ours)] == []

    def test_options_are_those_that_sglang_parses(self) -> None:
        from sglang.srt.server_args import ServerArgs

        fields = set(ServerArgs.__struct_fields__)
        assert options_of(installed_sources()) == fields == set.union(*decided_options(extension_sources()))

    def test_every_hook_that_is_installed_is_known(self) -> None:
        from sglang_hooks.seams import SCHEDULER_INIT, live_hooks

        uses = find_uses(extension_sources(), installed_sources())
        patched = {(use.target, use.parameters) for use in uses if use.kind is UseKind.HOOK}
        assert {(hook.target, hook.parameters) for hook in (SCHEDULER_INIT, *live_hooks())} <= patched


@pytest.mark.parametrize("version", ["0.5.21", "0.5.22", "0.5.23"])
def test_other_releases(version: str) -> None:
    folder = os.environ.get("MARCONI_SGLANG_WHEELS")
    if not folder:
        pytest.skip("MARCONI_SGLANG_WHEELS names no folder with SGLang's wheels 0.5.21 to 0.5.23")
    wheels = {v: from_wheel(next(Path(folder).glob(f"sglang-{v}-*.whl"))) for v in (version, "0.5.23")}
    ours, baseline = extension_sources(), wheels["0.5.23"]
    changes = compare(wheels[version], baseline, find_uses(ours, baseline))
    evict = "sglang.srt.mem_cache.unified_cache.components.mamba.MambaComponent.evict_component"
    assert (changes == []) is (version == "0.5.23")
    assert (evict in {change.target for change in changes}) is (version != "0.5.23")


def test_a_use_says_where_it_is() -> None:
    uses = find_uses(OURS, sources(**THEIRS))
    assert all(isinstance(use, Use) and use.where == "sglang_hooks/cache.py" for use in uses)
