"""The conversation of `i3lm chat`: what the user types, the commands, the replies."""

import atexit
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from i3lm.cli.common import note, write
from i3lm.errors import UserError, did_you_mean
from i3lm.files import write_atomic

if TYPE_CHECKING:
    from i3lm.chatting import Chat

HELP = """\
/reset         forget the conversation
/system TEXT   set what the model is told first, and forget the conversation
/retry         take the last reply back and draw another one
/save FILE     write the conversation to a .jsonl file, which i3lm train can read
/stats         tokens, speed and how full the window is
/quit          leave (or Ctrl-D)
Ctrl-C stops a reply. Alt-Enter, or \\ at the end of a line, begins a new line."""

Ask = Callable[[], str]  # the next message; EOFError at the end, KeyboardInterrupt for Ctrl-C


class Conversation:
    """Reads messages and commands until the user leaves."""

    def __init__(self, chat: "Chat") -> None:
        self.chat = chat
        self.tokens, self.seconds = 0, 0.0  # of all replies

    def run(self) -> None:
        """Talk."""
        told = sys.stdin.isatty()
        ask = _asker(told)
        if told:
            click.echo("Say something; /help lists what else, Ctrl-D leaves.", err=True)
        while True:
            try:
                text = ask().strip()
            except EOFError:
                if told:
                    click.echo()
                return
            except KeyboardInterrupt:
                click.echo("\nCtrl-D or /quit leaves.", err=True)
                continue
            except UnicodeDecodeError:
                note("that was not UTF-8; say it again")
                continue
            if text == "/quit":
                return
            if text.startswith("/"):
                self.obey(text)
            elif text:
                self.answer(text)

    def obey(self, text: str) -> None:
        """Carry out a command."""
        name, _, rest = text.partition(" ")
        method = getattr(self, f"_on_{name[1:]}", None) if name[1:] in COMMANDS else None
        if method is None:
            hint = did_you_mean(name, [f"/{command}" for command in COMMANDS])
            note(f"no command is named {name}; {hint}/help lists them")
            return
        try:
            method(rest.strip())
        except UserError as error:
            note(str(error))

    def answer(self, text: str) -> None:
        """Say `text` and print the reply as it comes."""
        self.chat.stream = None  # of the reply before
        reply = self.chat.reply(text)
        begin = time.monotonic()
        coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        coloured = coloured and os.environ.get("TERM") != "dumb"
        try:
            if coloured:
                click.echo("\x1b[36m", nl=False)
            for piece in reply:
                write(piece)
        except UserError as error:
            note(str(error))
            return
        except KeyboardInterrupt:
            reply.close()  # type: ignore[attr-defined]
        finally:
            if coloured:
                click.echo("\x1b[0m", nl=False)
            self.seconds += time.monotonic() - begin
            if self.chat.stream is not None:
                self.tokens += self.chat.stream.tokens
        write("\n")

    def _on_help(self, rest: str) -> None:
        click.echo(HELP, err=True)

    def _on_reset(self, rest: str) -> None:
        self.chat.reset()
        click.echo("The conversation is forgotten.", err=True)

    def _on_system(self, rest: str) -> None:
        self.chat.system = rest or None
        self._on_reset("")

    def _on_retry(self, rest: str) -> None:
        messages = self.chat.messages
        if len(messages) < 2:
            raise UserError("there is no reply to take back; say something first")
        turn = messages[-2:]
        del messages[-2:]
        before = len(messages)
        self.answer(turn[0]["content"])
        if len(messages) == before:  # stopped before its first word, or refused
            messages.extend(turn)

    def _on_save(self, rest: str) -> None:
        path = Path(rest or "chat.jsonl").expanduser()
        if not self.chat.messages:
            raise UserError("there is no conversation to save; say something first")
        if path.exists():
            raise UserError(f"{path} exists; name another file: /save FILE")
        system = self.chat.system
        told = [{"role": "system", "content": system}] if system else []
        row = json.dumps({"messages": [*told, *self.chat.messages]}, ensure_ascii=False)
        try:
            write_atomic(path, f"{row}\n".encode())
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}); name another") from None
        click.echo(f"saved to {path}", err=True)

    def _on_stats(self, rest: str) -> None:
        stream = self.chat.stream
        turns = len(self.chat.messages) // 2
        speed = self.tokens / self.seconds if self.seconds else 0.0
        used = f", {stream.prompt_tokens + stream.tokens:,} in the last turn" if stream else ""
        click.echo(
            f"{turns:,} turns; {self.tokens:,} tokens of replies at {speed:,.0f} tokens a second; "
            f"a window of {self.chat.window:,} tokens{used}",
            err=True,
        )


COMMANDS = ("help", "reset", "system", "retry", "save", "stats", "quit")


def _asker(told: bool) -> Ask:
    """Return what reads a message: prompt_toolkit at a terminal, else a line of standard input."""
    if told and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        with contextlib.suppress(ImportError):
            return _prompt_toolkit()
    if told:
        with contextlib.suppress(ImportError):
            import readline

            with contextlib.suppress(OSError):
                readline.read_history_file(history_path())
                atexit.register(readline.write_history_file, history_path())
    return lambda: _lines("> " if told else "")


def _lines(prompt: str) -> str:
    """Read a line, and those that follow a backslash at its end."""
    lines = [input(prompt)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(input("… " if prompt else ""))
        except EOFError:  # what was written is still said
            break
    return "\n".join(lines)


def _prompt_toolkit() -> Ask:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import ColorDepth

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    history: History = InMemoryHistory()
    with contextlib.suppress(OSError):
        history = FileHistory(str(history_path()))
    session: PromptSession[str] = PromptSession(
        history=history,
        key_bindings=keys,
        multiline=True,
        prompt_continuation="… ",
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
        complete_while_typing=False,
        color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
    )
    return lambda: session.prompt("> ")


def history_path() -> Path:
    """Return the file of what was typed, readable by its owner alone; OSError if it cannot be."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(state) / "i3lm" / "chat-history"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    return path
