"""Replace a function everywhere it has been imported to."""

import importlib
import sys
import types
from collections.abc import Callable


def rebind(module: str, name: str, replacement: Callable) -> None:
    """Bind `replacement` to `module.name` and to every loaded module's copy of the original.

    `from x import f` copies the reference, so replacing `x.f` alone leaves the importers with the old one.
    A name that the module lacks is created.
    """
    home = importlib.import_module(module)
    original = getattr(home, name, None)
    setattr(home, name, replacement)
    if original is None or original is replacement:
        return
    for other in list(sys.modules.values()):
        if isinstance(other, types.ModuleType):
            for attribute, value in list(vars(other).items()):
                if value is original:
                    setattr(other, attribute, replacement)
