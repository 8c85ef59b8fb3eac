"""The command `ai-infer`: `serve` models over HTTP, `bench` one on this machine."""

import argparse
import os
import sys
from importlib.metadata import PackageNotFoundError, version

from ai.infer.arguments import UsageError
from ai.infer.http import serve


class _Help(argparse.HelpFormatter):
    """Says the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, False, argparse.SUPPRESS) or "default" in (action.help or "")
        return action.help if silent else f"{action.help} (default: %(default)s)"


def _version() -> str:
    try:
        return version("ai-infer")
    except PackageNotFoundError:  # run from a tree of sources that was never installed
        return "(not installed)"


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="ai-infer",
        description="Run models for other programs.",
        epilog="example: ai-infer serve digits=my_package.nets:digits --port 8000",
    )
    parser.add_argument("--version", action="version", version=f"ai-infer {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, what: str, example: str) -> argparse.ArgumentParser:
        told = f"example: {example}"
        return commands.add_parser(name, help=what, description=what, epilog=told, formatter_class=_Help)

    serving = add("serve", "Serve models over HTTP.", "ai-infer serve digits=my_package.nets:digits --port 8000")
    serve.add_arguments(serving)
    serving.set_defaults(run=serve.run)
    from ai.infer import bench

    what = "Measure a model's latency and throughput."
    benching = add("bench", what, "ai-infer bench 'my_package.nets:digits?input=x:FP32:-1,1,28,28' --clients 1,8")
    bench.add_arguments(benching)
    benching.set_defaults(run=bench.run)
    arguments = parser.parse_args(argv)
    sys.path.insert(0, os.getcwd())  # where a model's package may lie, as `python -m` would; workers get it too
    try:
        code: int = arguments.run(arguments)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
