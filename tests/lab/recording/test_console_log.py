import contextlib
import io
import sys

import pytest

from ai.lab import Trial
from ai.lab.recording import console_log
from ai.lab.recording.console_log import TextLog


def test_dots_printed_one_by_one_are_one_line(tmp_path, capsys):
    log = TextLog(tmp_path / "log.txt")
    for _ in range(100):
        print(".", end="")
    print()
    print("\r50%\r", end="")
    print("done")
    print("left over", end="")
    log.close()
    assert (tmp_path / "log.txt").read_text() == "." * 100 + "\ndone\nleft over\n"
    assert capsys.readouterr().out.startswith("." * 100)


def test_what_was_printed_without_an_end_of_its_line_stands_before_how_the_run_ended(tmp_path):
    trial = Trial(tmp_path / "t", system_interval_s=None)
    trial.log(0, {"loss": 1.0})
    print("half", end="")
    with pytest.raises(MemoryError), trial:
        raise MemoryError
    lines = (tmp_path / "t" / "log.txt").read_text().splitlines()
    assert lines[0] == "half"
    assert lines[-2] == "MemoryError"
    assert lines[-1].endswith("] failed")


def test_a_line_is_joined_at_its_end_and_not_at_each_write(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console_log, "_MOST_PARTS", 30)
    monkeypatch.setattr(console_log, "_LONGEST_LINE", 50)
    log = TextLog(tmp_path / "log.txt")
    stream, kept = sys.stdout, []
    for index in range(100):
        stream.write(str(index % 10))
        kept.append(len(stream._parts))
    log.close()
    assert max(kept) == 30
    assert kept.count(1) <= 4  # so often were they joined
    assert (tmp_path / "log.txt").read_text().endswith("56789\n")


def test_logs_that_end_in_any_order_put_the_streams_back_and_lengthen_no_chain(tmp_path):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        last = TextLog(tmp_path / "0")
        for number in range(1, 30):  # each begins before the one before it ends
            log = TextLog(tmp_path / str(number))
            last.close()
            print(number)
            assert sys.stdout.inner is out
            last = log
        last.close()
        assert sys.stdout is out
        print("end")
    assert out.getvalue().split() == [*map(str, range(1, 30)), "end"]
    assert [(tmp_path / str(number)).read_text() for number in (0, 1, 29)] == ["", "1\n", "29\n"]
