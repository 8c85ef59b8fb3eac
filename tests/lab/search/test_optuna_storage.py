import gc

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
