"""`marconi dashboard`: the Grafana dashboard and the Prometheus alerts that come with the package."""

from pathlib import Path
from typing import Annotated

import typer


def dashboard(
    alerts: Annotated[bool, typer.Option("--alerts", help="Prometheus alert rules instead.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write there; default: stdout.")] = None,
) -> None:
    """Print the Grafana dashboard (JSON) for servers with --enable-marconi --enable-metrics, or their alerts."""
    from importlib.resources import files

    from marconi_ext.errors import BadInputError

    name = "alerts.yml" if alerts else "grafana.json"
    text = (files("marconi_ext") / "dashboards" / name).read_text(encoding="utf-8")
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"--out {out}: {error.strerror}") from None
