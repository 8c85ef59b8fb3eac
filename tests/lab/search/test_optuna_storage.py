import gc
import sys

import pytest

from ai.lab.search.optuna_storage import open_study


def test_connections_to_a_database_are_closed_with_the_study(tmp_path):
    study = open_study(tmp_path, f"sqlite:///{tmp_path}/search.db", "search", ["minimize"])
    study.tell(study.ask(), 1.0)
    pool = study._storage._backend.engine.pool
    study._storage.remove_session()
    assert pool.checkedin() > 0
    del study
    gc.collect()
    assert pool.checkedin() == 0


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("nonsense", ValueError, "storage must be the URL of a database, such as sqlite:"),
        ("http://me:secret@host", ValueError, "storage must be the URL of a database, .*dialects:http"),
        ("mysql+nowhere://me:secret@host/x", ValueError, "storage must be the URL of a database, .*mysql.nowhere"),
        ("sqlite:////nowhere/x.db", ConnectionError, r"storage \(sqlite:////nowhere/x.db\) must be .* unable to open"),
        (
            "sqlite:////dev/null/x",
            ConnectionError,
            r"storage \(sqlite:////dev/null/x\) must be a database that answers",
        ),
    ],
)
def test_what_is_no_database_is_said_in_one_sentence_without_its_password(tmp_path, url, kind, message):
    with pytest.raises(kind, match=message) as caught:
        open_study(tmp_path, url, "search", ["minimize"])
    assert "secret" not in str(caught.value)


def test_the_driver_that_a_database_needs_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"storage \(postgresql\+psycopg2://me:\*\*\*@host/x\) needs .*psycopg2"
    ):
        open_study(tmp_path, "postgresql+psycopg2://me:secret@host/x", "search", ["minimize"])
