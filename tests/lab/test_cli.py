"""The command line as a newcomer meets it: a version, help with defaults and an example, status 2 for a wrong usage."""

import pytest

from ai.lab import cli

COMMANDS = list(cli._EXAMPLES)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        cli.main(list(arguments))
    shown = capsys.readouterr()
    return exit_.value.code, shown.out, shown.err


def test_the_version_is_told(capsys):
    status, out, _ = run(capsys, "--version")
    assert status == 0
    assert out.startswith("ai-lab 0.")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_commands_help_ends_with_an_example_and_says_its_defaults(command, capsys):
    status, out, _ = run(capsys, command, "--help")
    assert status == 0
    assert f"example: ai-lab {command} " in out
    assert "default: None" not in out
    assert "default: []" not in out


def test_defaults_are_shown(capsys):
    assert "(default: 8765)" in run(capsys, "serve", "--help")[1]


def test_a_wrong_usage_is_status_2(capsys):
    status, _, err = run(capsys, "swerve")
    assert status == 2
    assert "invalid choice: 'swerve'" in err


def test_a_token_of_the_environment_is_not_printed(capsys, monkeypatch):
    monkeypatch.setenv("AI_LAB_TOKEN", "s3cret")
    assert "s3cret" not in run(capsys, "serve", "--help")[1]
