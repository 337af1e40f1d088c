"""Help that fits a screen, completion, terminals of all kinds."""

import os
import subprocess
import sys

import click
import pytest

from i3lm.cli import group
from i3lm.cli.help import Command, colour

COMMANDS = [name for name, command in group.commands.items() if isinstance(command, Command)]


def help_of(name: str, width: int = 80) -> list[str]:
    command = group.commands[name]
    context = click.Context(
        command,
        parent=click.Context(group, info_name="i3lm"),
        info_name=name,
        help_option_names=["-h", "--help"],
        terminal_width=width - 2,
    )
    return click.unstyle(command.get_help(context)).splitlines()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_shows_an_example(name):
    lines = help_of(name)
    assert len(lines) <= 54
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("Example: i3lm ") for line in lines)
    options = [option for p in group.commands[name].params for option in p.opts if option[0] == "-"]
    text = "\n".join(lines)
    assert all(option in text for option in options)
    assert max(map(len, help_of(name, 44))) <= 44 + len("--return-memory / --keep-memory")


def test_train_groups_its_options():
    text = "\n".join(help_of("train"))
    places = [text.index(f"\n{title}:") for title in ("Basic", "Model", "Optimisation", "Memory")]
    assert places == sorted(places)
    assert "[10m]" in text


def test_a_group_of_unknown_options_is_a_defect():
    with pytest.raises(AssertionError, match="colour"):
        Command("x", groups={"Odd": "colour"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--optimizr", "x"], "--optimizer"),
        (["train", "--optimizer", "moun"], "did you mean muon?"),
        (["train", "--gradient-checkpointing", "ful"], "did you mean full?"),
        (["train", "--report-to", "wanb"], "did you mean wandb?"),
        (["comparr"], "did you mean compare?"),
        (["completion", "tcsh"], "bash"),
    ],
)
def test_what_was_mistyped_is_named(refused, arguments, words):
    assert words in refused(*arguments)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(run, shell):
    code, out, _ = run("completion", shell)
    assert code == 0
    assert "_I3LM_COMPLETE" in out


@pytest.mark.parametrize(
    ("words", "found"),
    [("i3lm tra", "train"), ("i3lm train --pre", "--preset"), ("i3lm train --preset i3-m", "mini")],
)
def test_the_shell_is_answered(words, found):
    environment = {
        **os.environ, "_I3LM_COMPLETE": "bash_complete", "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }  # fmt: skip
    code = "import sys; from i3lm.__main__ import main; sys.argv = ['i3lm']; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert found in done.stdout


def test_colour_is_left_out_where_it_is_not_wanted(monkeypatch):
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        assert colour() is None
        monkeypatch.setenv(name, value)
        assert colour() is False
