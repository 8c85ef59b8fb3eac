"""Pickles of what a worker runs, by value: a worker need not be able to import the user's own modules."""

import os
import sys
import sysconfig
import threading
from types import ModuleType
from typing import Any

_lock = threading.Lock()


def ship(function: Any) -> bytes:
    """Returns `function` pickled with the source of everything in it that is not installed.

    Functions and classes of the script, of notebooks and of modules beside them travel by value, since in a worker the
    same name may mean another module or none; those of installed packages and of ours travel by name.

    Raises:
        TypeError: something in it cannot be pickled; the message names it.
    """
    import cloudpickle  # type: ignore[import-untyped]

    with _lock:
        known = set(cloudpickle.list_registry_pickle_by_value())
        installed = _installed_folders()
        modules = list(sys.modules.items())
        ours = [m for name, m in modules if name not in known and _is_local(name, m, installed)]
        for module in ours:
            cloudpickle.register_pickle_by_value(module)
        try:
            payload: bytes = cloudpickle.dumps(function)
        except Exception as error:
            raise TypeError(f"a worker process cannot be given this function or source: {error}") from error
        finally:
            for module in ours:
                cloudpickle.unregister_pickle_by_value(module)
    return payload


def _is_local(name: str, module: ModuleType, installed: tuple[str, ...]) -> bool:
    file = getattr(module, "__file__", None)
    if file is None or name == "__main__" or name.split(".")[0] == "ai" or getattr(module, "__name__", None) != name:
        return False
    return not file.startswith(installed)


def _installed_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    return tuple(folder + os.sep for folder in folders)
