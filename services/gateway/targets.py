"""Which request targets are passed on at all: those that every server on the way reads as the same path."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from libs.common.errors import BadRequest, NotFound

_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NOT_PLAIN = re.compile(r"[^\x21-\x7e]")
# After one decoding: control characters, backslashes, and a % that a second decoding would turn into something.
_REFUSED_CHARACTERS = re.compile(rb"[\x00-\x1f\x7f\\%]")


def read_target(raw: str) -> str:
    """The path and query to ask upstream for, as the client wrote them.

    `raw` is the request line's target. BadRequest when it isn't a URL: an escape is broken, or a character has to
    be escaped and isn't. NotFound for a path with dot segments, empty segments, encoded slashes, backslashes or
    control characters, and for internal ones: those could mean another path to the service than they did to the
    gateway's route table.
    """
    target = raw.partition("#")[0]
    if _BROKEN_ESCAPE.search(target):
        raise BadRequest("The URL has a % that is not followed by two hexadecimal digits.")
    if _NOT_PLAIN.search(target):
        raise BadRequest("The URL has a character that must be escaped.")
    if not _is_plain_path(target.partition("?")[0]):
        raise NotFound("There is nothing at this path.")
    return target


def _is_plain_path(path: str) -> bool:
    if not path.startswith("/"):
        return False
    decoded = unquote_to_bytes(path)
    if decoded.count(b"/") != path.count("/") or _REFUSED_CHARACTERS.search(decoded):
        return False
    first, *others = decoded[1:].split(b"/")
    segments = [first, *others]
    # Only the last segment may be empty: that is the final slash.
    if b"" in segments[:-1] or b"." in segments or b".." in segments:
        return False
    return first.lower() != b"internal"
