"""The command line as a newcomer meets it: a version, help with defaults and an example, status 2 for a wrong usage."""

from importlib.metadata import PackageNotFoundError

import pytest

from ai.infer import cli

COMMANDS = ["serve", "bench"]


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        cli.main(list(arguments))
    shown = capsys.readouterr()
    return exit_.value.code, shown.out, shown.err


def test_the_version_is_told(capsys):
    status, out, _ = run(capsys, "--version")
    assert status == 0
    assert out.startswith("ai-infer 0.")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_commands_help_ends_with_an_example_and_says_its_defaults(command, capsys):
    status, out, _ = run(capsys, command, "--help")
    assert status == 0
    assert f"example: ai-infer {command} " in out
    assert "default: None" not in out
    assert "default: []" not in out


def test_defaults_are_shown(capsys):
    assert "(default: 8000)" in run(capsys, "serve", "--help")[1]


def test_a_wrong_usage_is_status_2(capsys):
    status, _, err = run(capsys, "swerve")
    assert status == 2
    assert "invalid choice: 'swerve'" in err


def test_a_tree_of_sources_that_was_never_installed_has_a_version_too(capsys, monkeypatch):
    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(cli, "version", version)
    assert run(capsys, "--version")[:2] == (0, "ai-infer (not installed)\n")


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        (
            "nowhere",
            "must come from package.module:factory, a .pt2 or .onnx file or a folder that is there, not 'nowhere'",
        ),
        ("nowhere.onnx", "must be a file that is there, not nowhere.onnx"),
    ],
)
def test_a_source_that_is_not_there_is_one_sentence_and_status_2(source, rule, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["serve", f"net={source}"]) == 2
    assert capsys.readouterr().err == f"ai-infer serve: model 'net' {rule}\n"
