"""The command line `ai-lab`: list, show, compare, resume, reproduce, tag, remove, export, publish, serve, work."""

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from ai.lab.config import diff
from ai.lab.files.folder import LabPathError, find, lab_root, read_marker, resolve, scan
from ai.lab.files.marks import change_marks
from ai.lab.files.ownership import holder
from ai.lab.files.removal import remove_unowned
from ai.lab.provenance.description import command_line
from ai.lab.provenance.masking import MASK
from ai.lab.record import Record, was_opened
from ai.lab.report.text_table import format_table

_EXAMPLES = {
    "ls": "mnist",
    "show": "mnist/lr0.1 --diff",
    "compare": "mnist/lr0.1 mnist/lr0.01 --metric val_loss --format markdown",
    "resume": "mnist/lr0.1",
    "reproduce": "search@best --to ../again",
    "tag": "mnist/lr0.1 --add pinned --note 'the one for the paper'",
    "rm": "mnist/lr0.1 mnist/lr0.01",
    "export": "mnist/lr0.1 --to tensorboard",
    "publish": "search site --results-only",
    "serve": "search --port 8765",
    "work": "search --device cuda:0",
}


class _Help(argparse.HelpFormatter):
    """Says the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, False, [], argparse.SUPPRESS) or "default" in (action.help or "")
        return action.help if silent else f"{action.help} (default: %(default)s)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    0; 1 for an error told in one line; 2 for a wrong usage or a wrong `$AI_LAB_PATH`.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that is no text must not hide the others
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except LabPathError as error:
        print(f"ai-lab: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        print(f"ai-lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ai-lab",
        description="Recorded trials: look at them, keep them, go on.",
        epilog="example: ai-lab serve; one for each COMMAND with its --help",
    )
    parser.add_argument("--version", action="version", version=f"ai-lab {version('ai-lab')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
        example = f"example: ai-lab {name} {_EXAMPLES[name]}"
        made = commands.add_parser(name, help=what, description=what, epilog=example, formatter_class=_Help)
        made.set_defaults(command=command)
        return made

    where = "a folder, relative to $AI_LAB_PATH (else ./ai-lab) or to here, or absolute; or an alias, search@best"
    listing = add("ls", list_, "List the trials in a folder.")
    listing.add_argument("path", nargs="?", help=f"{where}; the lab's root by default")
    showing = add("show", show, "Show one trial: state, command, code, configuration, last metrics.")
    showing.add_argument("path", help=where)
    showing.add_argument("--diff", action="store_true", help="the git diff it ran with")
    comparing = add("compare", compare_, "Compare trials: last metrics, and where their configurations differ.")
    comparing.add_argument("paths", nargs="+", help=where)
    comparing.add_argument("--metric", action="append", default=[], help="a metric to show (all by default)")
    comparing.add_argument("--over", action="append", default=[], help="configuration that only repeats, such as seed")
    comparing.add_argument(
        "--best", action="append", default=[], metavar="METRIC=min|max", help="also the best value that each ever had"
    )
    comparing.add_argument("--format", choices=["text", "markdown", "latex"], default="text", help="of the table")
    comparing.add_argument("--plot", metavar="FILE", help="also draw the metrics, as PNG or SVG")
    resuming = add("resume", resume, "Run a trial's recorded command again, where it was run.")
    resuming.add_argument("path", help=where)
    resuming.add_argument("--print", action="store_true", help="only print the command")
    reproducing = add("reproduce", reproduce, "Check a trial's code out beside the repository and print its command.")
    reproducing.add_argument("path", help=where)
    reproducing.add_argument("--to", help="the folder to make; the trial's name beside the repository by default")
    tagging = add("tag", tag, "Tag trials, or set their note; 'pinned' puts them first on the page.")
    tagging.add_argument("paths", nargs="+", help=where)
    tagging.add_argument("--add", action="append", default=[], metavar="TAG")
    tagging.add_argument("--remove", action="append", default=[], metavar="TAG")
    tagging.add_argument("--note", help="what the page shows with the trial's name")
    removing = add("rm", rm, "Delete what the lab recorded in folders; asks first.")
    removing.add_argument("paths", nargs="+", help=where)
    removing.add_argument("-y", "--yes", action="store_true", help="do not ask")
    exporting = add("export", export_, "Fill another tracker from a recorded trial.")
    exporting.add_argument("path", help=where)
    exporting.add_argument("--to", required=True, help="tensorboard, wandb or mlflow")
    publishing = add("publish", publish, "Write the page as files that open without a server.")
    publishing.add_argument("path", help=where)
    publishing.add_argument("out", help="the folder to write")
    publishing.add_argument("--results-only", action="store_true", help="without code, commands, packages and logs")
    serving = add("serve", serve, "Serve the page that shows a folder's trials, on this machine only by default.")
    serving.add_argument("path", nargs="?", help=f"{where}; the lab's root by default")
    serving.add_argument("--host", default="127.0.0.1", help="another address needs a token")
    serving.add_argument("--port", type=int, default=8765, help="0 picks a free one")
    serving.add_argument("--token", help="what a browser must know to look; also $AI_LAB_TOKEN")
    working = add("work", work, "Take trials of a search that was offered, until there are enough; on any machine.")
    working.add_argument("path", help=f"the experiment: {where}; with a database its name")
    working.add_argument(
        "--storage", metavar="URL", help="the database, where no folder is shared; also $AI_LAB_STORAGE"
    )
    working.add_argument("--device", help="what trial.device says, such as cuda:1")
    working.add_argument("--stay", action="store_true", help="until all have ended, to take up what others lose")
    return parser


def list_(options: argparse.Namespace) -> int:
    """`ai-lab ls`."""
    root = _find(options.path, marked=False) if options.path else lab_root()
    rows: list[list[object]] = []
    for path, marker, problem in scan(root):
        name = str(path.relative_to(root)) or "."
        if marker is None:
            rows.append([name, "damaged", None, None, problem])
            continue
        if marker["kind"] != "trial" or not was_opened(path):
            continue
        record = Record(path, marker)
        meta, problems = record.load_meta()
        last = record.last()
        shown = [f"{key}={value:.4g}" for key, value in last.items() if key in ("loss", "val_loss", "accuracy")]
        rows.append([name, record.state, last.get("step"), _age(meta.get("created")), " ".join(problems or shown)])
    if not rows:
        print(f"no trials in {root}")
        return 0
    print(format_table(["trial", "state", "step", "started", "last"], rows, width=100))
    return 0


def show(options: argparse.Namespace) -> int:
    """`ai-lab show`."""
    record = Record(_find(options.path))
    session = (record.meta.get("sessions") or [{}])[-1]
    git = session.get("git") or {}
    if options.diff:
        print(git.get("diff") or "", end="")
        return 0
    changed = " with changes" if git.get("diff") else ""
    last = record.last()
    row_time = last.pop("time", None)
    facts = {
        "trial": record.path,
        "id": record.id,
        "state": record.state,
        "error": record.meta.get("error"),
        "damaged": "; ".join(record.problems()) or None,
        "started": _date(record.meta.get("created", 0)),
        "last row": _date(row_time) if row_time is not None else None,
        "sessions": len(record.meta.get("sessions", [])),
        "host": session.get("host"),
        "command": command_line(session.get("argv", [])),
        "git": f"{git['commit']}{changed} ({git.get('branch', 'no branch')})" if git.get("commit") else None,
        "snapshots": ", ".join(map(str, record.snapshots())) or None,
        "samples": len(record.samples()) or None,
    }
    print(format_table(["", ""], [[key, value] for key, value in facts.items() if value], width=200).lstrip("\n "))
    for title, values in (("config", record.flat_config), ("last metrics", last)):
        if values:
            print(f"\n{title}")
            print(
                format_table(["", ""], [[f"  {key}", value] for key, value in values.items()], width=80).lstrip("\n ")
            )
    return 0


def compare_(options: argparse.Namespace) -> int:
    """`ai-lab compare`."""
    from ai.lab.report.compare import compare

    records = {str(path): Record(_find(path)) for path in options.paths}
    for one in options.best:
        if "=" not in one:
            raise ValueError(f"--best must be METRIC=min or METRIC=max, got {one!r}")
    best = {metric: way for metric, _, way in (one.rpartition("=") for one in options.best)}
    comparison = compare(records, options.metric, over=options.over, best=best)
    tell = {"text": comparison.__repr__, "markdown": comparison.to_markdown, "latex": comparison.to_latex}
    print(tell[options.format]())
    if len(records) == 2:
        left, right = records.values()
        changes = diff(left.config, right.config)
        if changes:
            print("\nconfiguration")
            print(format_table(["", *records], [[key, *map(json.dumps, pair)] for key, pair in changes.items()]))
    if options.plot:
        print(comparison.plot(options.plot))
    return 0


def resume(options: argparse.Namespace) -> int:
    """`ai-lab resume`: the script itself decides to go on, by `trial.resume`."""
    record = Record(_find(options.path))
    sessions = record.meta.get("sessions") or []
    if not sessions:
        raise ValueError(f"{record.path} was never run: there is no command to run again")
    if (owner := holder(record.path)) is not None:
        raise ValueError(f"{record.path} is being written by process {owner['pid']} on {owner['host']}")
    argv, cwd = sessions[-1].get("argv"), sessions[-1].get("cwd")
    if not argv or cwd is None:
        raise ValueError(f"{record.path} does not tell the command that it was run by")
    if not os.path.isdir(cwd):
        raise ValueError(f"the folder that {record.path} was run in is gone: {cwd}")
    print(f"cd {command_line([cwd])} && {command_line(argv)}", flush=True)
    if not options.print and any(MASK in one for one in argv):
        raise ValueError(f"secrets of the command were not recorded: run it yourself, with them in place of {MASK}")
    if not options.print:
        os.chdir(cwd)
        os.execvp(argv[0], argv)
    return 0


def reproduce(options: argparse.Namespace) -> int:
    """`ai-lab reproduce`: a worktree at the recorded commit with the recorded changes, and its command."""
    from ai.lab.provenance.reproduction import check_out, not_checked_out

    record = Record(_find(options.path))
    folder, command = check_out(record, Path(options.to).absolute() if options.to else None)
    if missing := not_checked_out(record):
        few = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        print(f"ai-lab: {len(missing)} files that no commit has are not there: {few}", file=sys.stderr)
    print(f"cd {command_line([str(folder)])} && {command}")
    return 0


def tag(options: argparse.Namespace) -> int:
    """`ai-lab tag`."""
    records = [Record(_find(path)) for path in options.paths]
    for record in records:
        marks = change_marks(record.path, add=options.add, remove=options.remove, note=options.note)
        print(
            f"{record.name}: {' '.join(marks['tags']) or 'no tags'}" + (f"; {marks['note']}" if marks["note"] else "")
        )
    return 0


def rm(options: argparse.Namespace) -> int:
    """`ai-lab rm`."""
    paths = [_find(path) for path in options.paths]
    for path in paths:
        for inside in find(path, "trial"):
            if (owner := holder(inside)) is not None:
                raise ValueError(f"{inside} is being written by process {owner['pid']} on {owner['host']}")
    for path in paths:
        count = sum(1 for _ in find(path, "trial"))
        kind = (read_marker(path) or {})["kind"]
        question = f"delete the {kind} {path}" + (f" with {count} trials" if kind != "trial" else "") + "? [y/N] "
        if not options.yes and input(question).strip().lower() not in ("y", "yes"):
            print("kept")
            return 1
        remove_unowned(path)
    return 0


def export_(options: argparse.Namespace) -> int:
    """`ai-lab export`."""
    from ai.lab.recording.trackers import export

    print(f"{export(Record(_find(options.path)), options.to)} rows to {options.to}")
    return 0


def publish(options: argparse.Namespace) -> int:
    """`ai-lab publish`."""
    from ai.lab.page.publish import publish

    out = Path(options.out).absolute()
    count = publish(_find(options.path, marked=False), out, results_only=options.results_only)
    print(f"{count} trials in {out / 'index.html'}")
    return 0


def serve(options: argparse.Namespace) -> int:
    """`ai-lab serve`."""
    from ai.lab.page.server import serve

    root = _find(options.path, marked=False) if options.path else lab_root()
    serve(root, host=options.host, port=options.port, token=options.token or os.environ.get("AI_LAB_TOKEN"))
    return 0


def work(options: argparse.Namespace) -> int:
    """`ai-lab work`: a search's own loop, in this process."""
    from ai.lab.search.loop import report_line
    from ai.lab.search.offer import storage_address, take_offer
    from ai.lab.search.work import work_on

    storage = storage_address(options.storage)
    path = _find(options.path) if storage is None else resolve(options.path)
    search, run = take_offer(path, storage)
    search.device = options.device
    work_on(search, run, report_line, stay=options.stay)
    return 0


def _find(path: str, *, marked: bool = True) -> Path:
    """Returns an existing folder, looked for in the lab's root, then from here."""
    before, at, alias = path.rpartition("@")
    names = [path] + ([f"{before}/@{alias}"] if at and before and "/" not in alias else [])  # `search@best`
    roots = [Path()] if os.path.isabs(path) else [lab_root(), Path()]
    candidates = [(root / name).absolute() for name in names for root in roots]
    for candidate in candidates:
        if candidate.is_dir() and (not marked or read_marker(candidate) is not None):
            return resolve(Path(os.path.normpath(candidate)))
    tried = " or ".join(map(str, candidates))
    raise ValueError(f"{path!r} is nothing that the lab recorded: there is no such marked folder as {tried}")


def _date(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):  # of a damaged record: no time of any year
        return f"{seconds:g} s since 1970"


def _age(created: float | None) -> str | None:
    if created is None:
        return None
    seconds = max(0.0, time.time() - created)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
