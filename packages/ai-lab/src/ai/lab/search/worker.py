"""A worker process of an experiment: `python -m ai.lab.search.worker EVENTS`, started by `worker_pool`."""

import json
import os
import pickle
import signal
import sys
import threading
import time
import traceback


def main() -> None:
    """Runs trials until there are enough of them; reports each as a JSON line to the descriptor given."""
    events = int(sys.argv[1])
    os.set_inheritable(events, False)
    stdin = open(0, "rb")
    header = json.loads(stdin.readline())
    sys.path[:] = header["path"]
    payload = stdin.read(header["bytes"])
    threading.Thread(target=_end_with_parent, args=(0,), daemon=True).start()
    try:
        from ai.lab.report.trial_table import TrialRow
        from ai.lab.search.loop import work

        experiment, n, fn, catch = pickle.loads(payload)

        def report(row: TrialRow) -> None:
            os.write(events, json.dumps({"row": {**row._asdict(), "path": str(row.path)}}).encode() + b"\n")

        work(experiment, n, fn, catch, report)
    except Exception:
        os.write(events, json.dumps({"error": traceback.format_exc()}).encode() + b"\n")
        sys.exit(1)


def _end_with_parent(descriptor: int) -> None:
    while os.read(descriptor, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)  # a training run saves and ends, other code gets KeyboardInterrupt
    time.sleep(10)
    os._exit(1)


if __name__ == "__main__":
    main()
