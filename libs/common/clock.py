"""Times are aware and UTC everywhere; on the wire they are RFC 3339 with `Z`."""

from __future__ import annotations

import re
from datetime import UTC, datetime

# Seconds may be left out; digits beyond microseconds are dropped.
_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,12})?)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def utc_now() -> datetime:
    return datetime.now(UTC)


def format_time(moment: datetime) -> str:
    """`2026-01-31T08:15:00.123456Z`: RFC 3339, UTC, microseconds."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_time(text: str) -> datetime:
    """An RFC 3339 time as an aware UTC datetime. ValueError when it isn't one or lacks its offset."""
    # Python reads more of ISO 8601 than that, such as weeks, and differently from release to release.
    if not _RFC_3339.fullmatch(text):
        raise ValueError("not an RFC 3339 time with an offset")
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("outside the calendar") from error
