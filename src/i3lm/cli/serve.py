"""`i3lm serve`."""

from typing import Any

import click

from i3lm.cli.common import device_option, note
from i3lm.cli.help import Command
from i3lm.errors import UserError
from i3lm.units import parse_duration, parse_size


@click.command(
    "serve",
    cls=Command,
    short_help="Serve a model: OpenAI's API and a chat page.",
    groups={
        "Who may ask": "api_key allow_origin",
        "Limits": "max_new_tokens timeout workers queue max_body",
    },
    example="i3lm serve my-model, then open http://127.0.0.1:8000",
)
@click.argument("model", type=click.Path())
@click.option(
    "--host", metavar="ADDRESS", default="127.0.0.1", show_default=True,
    help="To listen on; 0.0.0.0 is for others, too",
)  # fmt: skip
@click.option(
    "--port", metavar="N", type=click.IntRange(0, 65535), default=8000, show_default=True,
    help="0: any that is free",
)  # fmt: skip
@click.option(
    "--api-key", metavar="KEY", envvar="I3LM_API_KEY",
    help="Ask for this key; better in the variable I3LM_API_KEY, which no list of processes shows",
)  # fmt: skip
@click.option(
    "--max-new-tokens", metavar="N", type=click.IntRange(1), default=1024, show_default=True,
    help="Of a reply, at most",
)  # fmt: skip
@click.option(
    "--timeout", metavar="TIME", default="2m", show_default=True, help="Of a reply, at most"
)
@click.option(
    "--workers", metavar="N", type=click.IntRange(1),
    help="Replies at the same time  [default: all cores]",
)  # fmt: skip
@click.option(
    "--queue", metavar="N", type=click.IntRange(0), default=64, show_default=True,
    help="Requests that may wait; more are refused (503)",
)  # fmt: skip
@click.option(
    "--max-body", metavar="SIZE", default="2MB", show_default=True,
    help="Of a request; longer ones are refused",
)  # fmt: skip
@click.option(
    "--allow-origin", metavar="URL", multiple=True, help="Let pages of this site ask; repeatable"
)
@device_option
def command(
    model: str,
    api_key: str | None,
    timeout: str,
    max_body: str,
    allow_origin: tuple[str, ...],
    **settings: Any,
) -> None:
    """Serve the model in folder MODEL over HTTP, with a page to chat on; Ctrl-C stops it."""
    if api_key is not None and not (
        api_key.isascii() and api_key.isprintable() and api_key.strip()
    ):
        raise UserError("the API key must be of plain ASCII characters; choose another")
    seconds, size = parse_duration(timeout), parse_size(max_body)
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise UserError("i3lm serve needs two packages; pip install 'i3lm[serve]'") from None
    from i3lm.bare import answer_without_torch

    answer_without_torch(model, settings["device"])
    from i3lm.serving.server import serve

    def ready(url: str, facts: dict[str, Any], local: bool) -> None:
        click.echo(f"{facts['id']} ({facts['parameters']:,} parameters) is served:")
        click.echo(f"  chat page  {url}/")
        click.echo(f"  API        {url}/v1  (OpenAI's; {'with' if api_key else 'no'} key)")
        click.echo("Ctrl-C stops.")
        if not local and api_key is None:
            note("everyone who reaches this address can use the model; see --api-key")

    serve(
        model,
        key=api_key,
        seconds=seconds,
        max_body=size,
        origins=allow_origin,
        ready=ready,
        **settings,
    )
