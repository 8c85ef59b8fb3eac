import re
import sys

import pytest

from ai.infer import bench
from ai.infer.cli import main
from tests import warm_python

SOURCE = 'torch.nn:Linear?args={"in_features":3,"out_features":2}&input=x:FP32:-1,3'


@pytest.mark.slow
def test_bench_prints_a_table_and_draws_it(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys, "executable", warm_python.executable())  # of the clients
    png = tmp_path / "bench.png"
    assert main(["bench", SOURCE, "--clients", "1,2", "--seconds", "0.2", "--outstanding", "2", "--png", str(png)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert re.split(r"  +", lines[0].strip())[:1] == ["clients"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2"]
    assert all(float(line.split()[2].replace(",", "")) > 0 for line in lines[1:])
    assert png.read_bytes().startswith(b"\x89PNG")


def test_bench_refuses_what_it_cannot_measure(capsys):
    assert main(["bench", SOURCE.split("&")[0]]) == 2
    assert "the model must have an input: add ?input=NAME:DATATYPE:SIZES" in capsys.readouterr().err
    assert main(["bench", "nowhere:f"]) == 2
    assert "the factory 'nowhere:f' must be importable" in capsys.readouterr().err
    with pytest.raises(ValueError, match="clients must be 1 or more, not 0"):
        bench.measure(None, [], 0)
    with pytest.raises(ValueError, match="seconds must be positive and finite, not 0"):
        bench.measure(None, [], 1, seconds=0)
    assert bench.Measurement(1, 1, 10.0, 1.0, 2.0, 1.0).clients == 1
