"""A worker process of an experiment: `python -m ai.lab.search.worker EVENTS`, started by `worker_pool`."""

import json
import os
import pickle
import secrets
import signal
import sys
import threading
import time
import traceback


def main() -> None:
    """Runs trials until there are enough of them; reports each as a JSON line to the descriptor given."""
    events = int(sys.argv[1])
    os.set_inheritable(events, False)
    stdin = open(0, "rb", buffering=0)
    header = json.loads(stdin.readline())
    sys.path[:] = header["path"]
    payload = b""
    while len(payload) < header["bytes"]:
        payload += stdin.read(header["bytes"] - len(payload)) or sys.exit("the search ended")
    stopping = threading.Event()
    threading.Thread(target=_obey, args=(stopping,), daemon=True).start()

    def tell(**event: object) -> None:
        os.write(events, json.dumps(event).encode() + b"\n")

    from ai.data.workers.error_text import error_text
    from ai.lab.recording.outcome import outcome_of
    from ai.lab.report.trial_table import TrialRow

    os.environ["AI_TRAINING"] = secrets.token_hex(8)  # as of `ai.data`'s workers
    try:
        search, run = pickle.loads(payload)
        search.device = header["device"]
        run.timeout_s = header["timeout_s"]

        def report(row: TrialRow) -> None:
            tell(row={**row._asdict(), "path": str(row.path)})

        if not search.work(run, report, stopping.is_set):
            tell(stopped=True)
    except SystemExit as ended:  # of the objective; one that a signal ended is replaced
        if outcome_of(ended)[0] != "interrupted":
            tell(
                exit=ended.code
                if isinstance(ended.code, int | None)
                else error_text(ended).removeprefix("SystemExit: ")
            )
        raise
    except Exception:
        tell(error=traceback.format_exc())
        sys.exit(1)


def _obey(stopping: threading.Event) -> None:
    """Waits for the parent: a line asks to take no more trials, the end of the pipe to end at once."""
    while os.read(0, 1024):
        stopping.set()
    os.kill(os.getpid(), signal.SIGINT)  # a training run saves and ends, other code gets KeyboardInterrupt
    time.sleep(10)
    os._exit(1)


if __name__ == "__main__":
    main()
