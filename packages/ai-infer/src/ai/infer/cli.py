"""The command `ai-infer`: `serve` models over HTTP, `bench` one on this machine."""

import argparse
import os
import sys

from ai.infer.http import serve


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="ai-infer", description="Run models for other programs.")
    commands = parser.add_subparsers(required=True)
    serving = commands.add_parser("serve", help="serve models over HTTP")
    serve.add_arguments(serving)
    serving.set_defaults(run=serve.run)
    from ai.infer import bench

    benching = commands.add_parser("bench", help="measure a model's latency and throughput")
    bench.add_arguments(benching)
    benching.set_defaults(run=bench.run)
    arguments = parser.parse_args(argv)
    sys.path.insert(0, os.getcwd())  # where a model's package may lie, as `python -m` would; workers get it too
    code: int = arguments.run(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
