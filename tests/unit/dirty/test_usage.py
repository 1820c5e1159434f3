"""Wrong input to `dirty-rate` and `limit`: one line, and nothing is connected to."""

from __future__ import annotations

import pytest

from qemu_ring.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dirty-rate"], ["Missing argument 'SOCKET'"]),
        (["dirty-rate", "/no/monitor", "--mode", "guess"], ["guess", "page-sampling"]),
        (["dirty-rate", "/no/monitor", "--seconds", "0"], ["--seconds 0", "0.05 to 60"]),
        (["dirty-rate", "/no/monitor", "--seconds", "soon"], ["soon"]),
        (["dirty-rate", "/no/monitor", "--sample-pages", "500"], ["mode page-sampling"]),
        (["limit", "get"], ["Missing argument 'SOCKET'"]),
        (["limit", "get", "/no/monitor", "--vcpu", "1"], ["No such option"]),
        (["limit", "set", "/no/monitor"], ["Missing argument 'RATE'"]),
        (["limit", "set", "/no/monitor", "50Q"], ["'50Q' is no rate", "such as 50M"]),
        (["limit", "set", "/no/monitor", "0"], ["0 bytes/s is no dirty limit", "cancel"]),
        (["limit", "set", "/no/monitor", "50M", "--vcpu", "-1"], ["-1"]),
        (["limit", "cancel", "/no/monitor", "--vcpu", "two"], ["two"]),
    ],
)
def test_usage_errors(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    for word in words:
        assert word in said.err


def test_monitor_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["dirty-rate"], ["limit", "get"], ["limit", "cancel"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, "/no/monitor"])
        said = capsys.readouterr()
        assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1)
        assert "No such file or directory; is QEMU running" in said.err
