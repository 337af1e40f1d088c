"""`i3lm chat`."""

from typing import Any

import click

from i3lm.cli.common import (
    GENERATION,
    device_option,
    json_option,
    note,
    sampling_options,
    text_or_stdin,
    write,
    write_json,
)
from i3lm.cli.help import Command
from i3lm.errors import UserError


@click.command(
    "chat",
    cls=Command,
    short_help="Talk with a model.",
    groups={"Generation": GENERATION},
    example='i3lm chat my-model -p "Who are you?"',
)
@click.argument("model", type=click.Path())
@click.option("-p", "--prompt", metavar="TEXT", help="Answer this and end; - reads stdin")
@click.option("--system", metavar="TEXT", help="What the model is told first")
@click.option(
    "--max-new-tokens", metavar="N", type=int, default=256, show_default=True, help="Of a reply"
)
@sampling_options
@device_option
@json_option
def command(model: str, prompt: str | None, device: str, as_json: bool, **settings: Any) -> None:
    """Talk with the model in folder MODEL; /help in the conversation lists what one can do."""
    if as_json and prompt is None:
        raise UserError("--json answers one message; give it with -p TEXT")
    message = None if prompt is None else text_or_stdin(prompt)
    from i3lm.bare import answer_without_torch
    from i3lm.exported import is_exported, needs_torch

    if not needs_torch(model):
        answer_without_torch(model, device)
    from i3lm.chatting import Chat, ExportedChat
    from i3lm.folder import load_folder
    from i3lm.generation import settled

    notes: list[str] = []
    notify = notes.append if as_json else note
    if is_exported(model):
        chat: Chat = ExportedChat(model, notify=notify, **settings)
    else:
        chat = Chat(settled(load_folder(model, device)), notify=notify, **settings)
    if message is None:
        from i3lm.cli.conversation import Conversation

        Conversation(chat).run()
    elif as_json:
        reply = "".join(chat.reply(message)).strip()
        assert chat.stream is not None
        result = {"reply": reply, "tokens": chat.stream.tokens}
        write_json(result | {"finish_reason": chat.stream.finish_reason, "notes": notes})
    else:
        for piece in chat.reply(message):
            write(piece)
        write("\n")
