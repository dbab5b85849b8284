"""The opaque cursor of a list: the place of the last row that was answered."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TIME_BYTES = 8
_LENGTH = _TIME_BYTES + 16


class BadCursor(Exception):
    """This didn't come from a list's nextCursor."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ended, in the order (created_at, id), newest first."""

    created_at: datetime
    id: UUID


def encode_cursor(place: Place) -> str:
    microseconds = (place.created_at - _EPOCH) // _MICROSECOND
    raw = microseconds.to_bytes(_TIME_BYTES, "big", signed=True) + place.id.bytes
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def decode_cursor(text: str) -> Place:
    """Raises BadCursor on anything that `encode_cursor` doesn't make."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        if len(raw) != _LENGTH:
            raise BadCursor(text)
        microseconds = int.from_bytes(raw[:_TIME_BYTES], "big", signed=True)
        place = Place(_EPOCH + microseconds * _MICROSECOND, UUID(bytes=raw[_TIME_BYTES:]))
    except (binascii.Error, ValueError, OverflowError) as error:
        raise BadCursor(text) from error
    if encode_cursor(place) != text:
        raise BadCursor(text)
    return place
