"""What Ray itself breaks off in the run under kills is told from what the search does."""

from collections import Counter

import pytest

from ai.examples import ray_chaos


class Cluster:
    """Starts a machine at the n-th try."""

    def __init__(self, at):
        self.at = at

    def add_node(self, **how):
        self.at -= 1
        if self.at > 0:
            raise Exception("The current node timed out during startup.")
        return how


def test_a_machine_that_ray_gives_up_is_tried_again_and_counted(capsys):
    broken_off = Counter()
    assert ray_chaos._started(Cluster(3), {"object_store_memory": 5}, broken_off) == {
        "num_cpus": 1,
        "object_store_memory": 5,
    }
    assert broken_off == {"node": 2}
    assert "Ray itself did not start a machine: The current node timed out" in capsys.readouterr().out


def test_where_ray_starts_none_the_run_says_that_it_shows_nothing():
    with pytest.raises(RuntimeError, match=r"Ray itself did not start a machine 20 times in a row: .* shows nothing"):
        ray_chaos._started(Cluster(1000), {}, Counter())
