"""Durations and sizes in the user's own units."""

import re

from i3lm.errors import UserError

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BYTES |= {f"{unit}i": 2**power for unit, power in {"k": 10, "m": 20, "g": 30, "t": 40}.items()}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(?:([kmgt]i?)b?|b)")


def parse_duration(text: str) -> float:
    """Return the seconds of `90s`, `10m`, `1h30m` or `2d`; UserError for anything else."""
    compact = "".join(text.lower().split())
    seconds = 0.0
    if _DURATION.fullmatch(compact):
        for amount, unit in re.findall(r"([\d.]+)([dhms])", compact):
            seconds += float(amount) * _SECONDS[unit]
    if not 0 < seconds < 1e9:
        raise UserError(f"{text!r} is no duration; write it like 90s, 10m or 1h30m")
    return seconds


def parse_size(text: str) -> int:
    """Return the bytes of `400MB`, `1.5G` or `512MiB`; UserError for anything else."""
    match = _SIZE.fullmatch("".join(text.lower().split()))
    size = round(float(match[1]) * _BYTES[match[2] or ""]) if match and len(match[1]) < 20 else 0
    if size < 1:
        raise UserError(f"{text!r} is no size; write it like 400MB, 1.5GB or 512MiB")
    return size


def format_duration(seconds: float) -> str:
    """Return `45s`, `12m05s` or `3h20m`: two units at most."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02d}m"


def format_bytes(size: float) -> str:
    """Return bytes in decimal units with three significant digits: `50.8 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if float(f"{size:.3g}") < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB" if size < 1000 else f"{size:,.0f} TB"
