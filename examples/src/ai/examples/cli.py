"""The command `ai-examples NAME …`, and how an example's own command line offers its presets.

An example is a package of `ai.examples` whose `main` module has a `main()` that reads `sys.argv`.
"""

import ast
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn, TypeVar

from ai import examples

ConfigT = TypeVar("ConfigT")


def read_config(presets: Mapping[str, ConfigT], descriptions: Mapping[str, str], about: str | None) -> ConfigT:
    """Returns the configuration that `sys.argv` asks for: `[PRESET] [--field value …]`.

    Args:
        presets: Configurations by name; the one called `laptop`, else the first, is taken where none is named. Where
            several would record to one `trial`, that of each but the default is named by its preset, as in
            `vit-tiny`: a run of one does not take another's place.
        descriptions: One line for each preset, shown by `--help`.
        about: Shown above the help, usually the module's docstring.

    Raises:
        ValueError: The descriptions are not those of the presets.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Config:
        ...     steps: int = 1000
        >>> sys.argv = ["ai-examples", "--steps", "5"]
        >>> read_config({"tiny": Config(10), "laptop": Config()}, {"tiny": "a test", "laptop": "minutes"}, None)
        Config(steps=5)
    """
    import tyro

    if presets.keys() != descriptions.keys():
        raise ValueError(f"descriptions must have the keys of presets, {sorted(presets)}, got {sorted(descriptions)}")
    default = "laptop" if "laptop" in presets else next(iter(presets))
    arguments = sys.argv[1:]
    if arguments and arguments[0].startswith("-") and not {"-h", "--help"} & set(arguments):
        arguments.insert(0, default)  # options of the default preset, without its name
    trials = Counter(getattr(config, "trial", None) for config in presets.values())
    presets = {
        name: config if name == default or trials[getattr(config, "trial", None)] == 1 else _apart(config, name)
        for name, config in presets.items()
    }
    choice = tyro.extras.subcommand_type_from_defaults(dict(presets), dict(descriptions))
    return tyro.cli(choice, default=presets[default], args=arguments, description=about)


def _apart(config: ConfigT, preset: str) -> ConfigT:
    trial = getattr(config, "trial", None)
    return config if trial is None else replace(config, trial=f"{trial}-{preset}")  # type: ignore[type-var]


def examples_with_descriptions() -> dict[str, str]:
    """Returns the first docstring line of each runnable example by name, read without importing it."""
    found = {}
    for name in examples.__all__:
        spec = find_spec(f"ai.examples.{name}")
        if spec and spec.origin and Path(spec.origin).with_name("main.py").exists():
            module = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
            found[name] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


def listing(names: Mapping[str, str]) -> str:
    """Returns an aligned list of names with what each stands for."""
    width = max(map(len, names), default=0)
    return "\n".join(f"  {name:<{width}}  {line}" for name, line in sorted(names.items()))


def refuse_unknown(command: str, kind: str, name: str, known: Sequence[str]) -> NoReturn:
    """Exits with status 2 and one sentence that names what is known, the nearest spelling first."""
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    print(f"{command}: there is no {kind} {name!r}; {hint}known: {', '.join(sorted(known))}", file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    """Runs one example by its name."""
    known = examples_with_descriptions()
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "--list"):
        print(f"usage: ai-examples NAME [PRESET] [--option value …]\n\nexamples:\n{listing(known)}")
        print(
            "\n`ai-examples NAME --help` shows an example's presets and options, `ai-examples --version` the release."
        )
        print("\nexample: ai-examples mnist --steps 300")
        return
    name, *rest = arguments
    if name == "--version":
        print(f"ai-examples {version('ai-examples')}")
        return
    if name not in known:
        refuse_unknown("ai-examples", "example", name, list(known))
    run: Callable[[], None] = import_module(f"ai.examples.{name}.main").main
    sys.argv = [f"ai-examples {name}", *rest]
    with told("ai-examples"):
        run()


@contextmanager
def told(command: str) -> Iterator[None]:
    """Ends a command in one sentence where a file or folder fails it: status 2 for the lab's root, 1 for any other."""
    from ai.lab.files.folder import LabPathError

    if Path(sys.argv[0]).name == "__main__.py":  # a path as long as the checkout's, in every line of --help
        sys.argv[0] = f"python -m ai.examples.{command}"
    try:
        yield
    except BrokenPipeError:  # whoever read what it prints has gone, which Python says in its own way
        raise
    except OSError as error:
        print(f"{command}: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, LabPathError) else 1) from None
