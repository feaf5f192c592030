"""`marconi verify`: bad usage ends before a server starts, and differences are shown."""

import pytest
from command import marconi

from marconi_ext.commands.verify import show as verify_view
from marconi_ext.commands.verify.run import Compared, Verification, VerifyOptions
from marconi_ext.errors import CheckFailedError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--server-flags", '"abc'), "--server-flags '\"abc': No closing quotation"),
        (("--trace", "synthetic:agent,fork"), "synthetic:agent,fork: not one of"),
        (("--trace", "/nowhere"), "/nowhere: no such file"),
        (("--log", "/nonexistent/x.log"), "--log /nonexistent/x.log"),
        (("--json", "/nonexistent/x.json"), "--json /nonexistent/x.json"),
        (("--policy", "fifo"), "--policy: unknown 'fifo'"),
        (("--policy", "clairvoyant"), "--policy clairvoyant: no server follows it"),
    ],
)
def test_bad_usage_names_the_flag_and_exits_2(arguments: tuple[str, ...], message: str) -> None:
    found = marconi("verify", *arguments)
    assert found.returncode == 2 and message in found.stderr, found.stderr


@pytest.mark.parametrize("simulated", [40, 30])
def test_differences_are_shown_and_fail(tmp_path, monkeypatch, capsys, simulated: int) -> None:
    requests = [Compared(0, "a", 0, 100, 40, 40, 40), Compared(1, "b", 0, 100, 40, 40, simulated)]
    found = Verification("gittins", 48, 1_000, requests, (3, 90), (3, 90))
    monkeypatch.setattr(verify_view, "verify", lambda options, on_request: found)
    options = VerifyOptions(tmp_path, True, [], 2, "gittins", 48, 1_000)
    if simulated == 40:
        verify_view.verify_and_print(options, 0)
        assert "40.00 % of 200 prompt tokens" in capsys.readouterr().out
        return
    with pytest.raises(CheckFailedError, match="1 of 2 requests differ"):
        verify_view.verify_and_print(options, 0)
    assert "simulated" in capsys.readouterr().out
