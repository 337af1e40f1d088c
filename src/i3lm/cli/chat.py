"""`i3lm chat`."""

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from i3lm.cli.common import (
    device_option,
    json_option,
    note,
    sampling_options,
    text_or_stdin,
    write,
    write_json,
)
from i3lm.errors import UserError

if TYPE_CHECKING:
    from i3lm.chatting import Chat

HELP = """\
/reset         forget the conversation
/system TEXT   set what the model is told first, and forget the conversation
/quit          leave (or Ctrl-D)
Ctrl-C stops a reply."""


@click.command("chat", short_help="Talk with a model.")
@click.argument("model")
@click.option("-p", "--prompt", help="Answer this and end; - reads standard input.")
@click.option("--system", help="What the model is told before the conversation.")
@click.option("--max-new-tokens", type=int, default=256, show_default=True, help="Of a reply.")
@sampling_options
@device_option
@json_option
def command(model: str, prompt: str | None, device: str, as_json: bool, **settings: Any) -> None:
    """Talk with the model in folder MODEL; /help in the conversation lists what one can do."""
    if as_json and prompt is None:
        raise UserError("--json answers one message; give it with -p TEXT")
    message = None if prompt is None else text_or_stdin(prompt)
    from i3lm.chatting import Chat
    from i3lm.folder import load_folder

    notes: list[str] = []
    notify = notes.append if as_json else note
    chat = Chat(load_folder(model, device), notify=notify, **settings)
    if message is None:
        _converse(chat)
    elif as_json:
        reply = "".join(chat.reply(message)).strip()
        assert chat.stream is not None
        result = {"reply": reply, "tokens": chat.stream.tokens}
        write_json(result | {"finish_reason": chat.stream.finish_reason, "notes": notes})
    else:
        for piece in chat.reply(message):
            write(piece)
        write("\n")


def _converse(chat: "Chat") -> None:
    prompt = ""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives input() its line editing)
        prompt = "> "
        click.echo("Say something; /help lists what else, Ctrl-D leaves.", err=True)
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            if prompt:
                click.echo()
            return
        except KeyboardInterrupt:
            click.echo("\nCtrl-D or /quit leaves.", err=True)
            continue
        except UnicodeDecodeError:
            note("that was not UTF-8; say it again")
            continue
        if line == "/quit":
            return
        if line.startswith("/"):
            _obey(chat, line)
        elif line:
            _answer(chat, line)


def _obey(chat: "Chat", line: str) -> None:
    name, _, text = line.partition(" ")
    if name == "/reset":
        chat.reset()
    elif name == "/system":
        chat.system = text.strip() or None
        chat.reset()
    elif name == "/help":
        click.echo(HELP, err=True)
    else:
        note(f"no command is named {name}; /help lists them")


def _answer(chat: "Chat", line: str) -> None:
    reply = chat.reply(line)
    try:
        for piece in reply:
            write(piece)
    except UserError as error:
        note(str(error))
        return
    except KeyboardInterrupt:
        reply.close()  # type: ignore[attr-defined]
    write("\n")
