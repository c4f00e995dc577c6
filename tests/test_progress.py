"""Progress in a log, by what is written to a file."""

import io

import pytest

from nspo_jax import progress


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, which a test moves."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.Bar, "_last_line", -progress.SECONDS)
    return now


def test_a_log_gets_a_line_every_ten_seconds_whatever_number_of_bars_runs(clock):
    log = io.StringIO()
    with progress.Bar(total=600, desc="sweep", unit="run", file=log) as outer:
        for _ in range(600):  # a second each
            with progress.Bar(total=3, desc="inner", unit="step", file=log, leave=False) as inner:
                inner.update(3)
                inner.set_postfix(loss="0.1")
            clock[0] += 1.0
            outer.update()
            outer.refresh()
    lines = log.getvalue().split("\n")
    assert lines.pop() == ""
    assert 58 <= len(lines) <= 61
    assert not any("\r" in line or "|" in line for line in lines)
    assert lines[0].startswith("sweep: 0/600 run [")
    assert all(line.startswith(("sweep: ", "inner: ")) for line in lines)


def test_bars_are_taken_off_the_list_when_they_end(clock):
    before = len(progress.Bar._instances)
    progress.Bar(total=1, file=io.StringIO()).close()
    assert len(progress.Bar._instances) == before


def test_a_terminal_gets_the_bar(clock):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    with progress.Bar(total=2, desc="train", file=terminal, mininterval=0.0) as bar:
        bar.update(2)
    assert "100%|" in terminal.getvalue() and "\r" in terminal.getvalue()
