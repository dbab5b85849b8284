"""Times are aware and UTC everywhere; on the wire they are RFC 3339 with `Z`."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    return datetime.now(UTC)


def format_time(moment: datetime) -> str:
    """`2026-01-31T08:15:00.123456Z`: RFC 3339, UTC, microseconds."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_time(text: str) -> datetime:
    """An RFC 3339 time as an aware UTC datetime. ValueError when it isn't one or lacks its offset."""
    moment = datetime.fromisoformat(text)
    if len(text) < len("2026-01-31T08:15Z") or text[10] not in "Tt " or moment.tzinfo is None:
        raise ValueError("not an RFC 3339 time with an offset")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("outside the calendar") from error
