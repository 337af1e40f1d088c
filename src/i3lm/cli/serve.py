"""`i3lm serve`."""

from typing import Any

import click

from i3lm.cli.common import device_option, note
from i3lm.errors import UserError
from i3lm.units import parse_duration, parse_size


@click.command("serve", short_help="Serve a model: OpenAI's API and a chat page.")
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="0: any that is free.",
)
@click.option(
    "--api-key",
    envvar="I3LM_API_KEY",
    show_envvar=True,
    help="Ask clients for this key. The variable hides it from the list of processes.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Of a reply, at most.",
)
@click.option("--timeout", default="2m", show_default=True, help="Of a reply, at most.")
@click.option(
    "--workers", type=click.IntRange(1), help="Replies at the same time.  [default: all cores]"
)
@click.option(
    "--queue",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="Requests that may wait; more are refused (503).",
)
@click.option(
    "--max-body", default="2MB", show_default=True, help="Of a request; longer ones are refused."
)
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="URL",
    help="Let pages of this site ask; may be repeated.",
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
    """Serve the model in folder MODEL over HTTP, with a page to chat on; Ctrl-C stops it.

    \b
    i3lm serve run                     then open http://127.0.0.1:8000
    I3LM_API_KEY=... i3lm serve run --host 0.0.0.0     for others, too
    """
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
