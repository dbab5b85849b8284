"""Image references: their grammar, and the operator's allow-list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

MAX_IMAGE_LENGTH = 255

_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*+)(?:\.[a-zA-Z0-9][a-zA-Z0-9-]*+)*+|\[[a-fA-F0-9:]++\])(?::[0-9]{1,5})?"
_COMPONENT = r"[a-z0-9]++(?:(?:\.|_{1,2}|-++)[a-z0-9]++)*+"
_REFERENCE = re.compile(
    rf"(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*+"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(?:@[A-Za-z][A-Za-z0-9]*+(?:[+._-][A-Za-z][A-Za-z0-9]*+)*+:[a-fA-F0-9]{32,128})?"
)
_DEFAULT_HOST = "docker.io"


def is_image_reference(text: str) -> bool:
    """Whether a container engine could take `text` for `[host[:port]/]path[:tag][@digest]`."""
    return len(text) <= MAX_IMAGE_LENGTH and _REFERENCE.fullmatch(text) is not None


def is_image_allowed(image: str, allowed: Sequence[str]) -> bool:
    """Whether one of the globs takes the image; no globs take every image.

    Both sides are compared in full (`busybox` is `docker.io/library/busybox`), so neither spelling slips
    through. A glob without a tag takes every tag.
    """
    if not allowed:
        return True
    repository, suffix = _split(image)
    full = _in_full(repository)
    names = (full, full + suffix, full + (suffix or ":latest"))
    globs = [glob if glob.startswith("*") else _in_full(glob) for glob in allowed]
    return any(fnmatchcase(name, glob) for name in names for glob in globs)


def _split(image: str) -> tuple[str, str]:
    """The repository, and the tag and digest with their marks."""
    repository, at, digest = image.partition("@")
    head, colon, tag = repository.rpartition(":")
    if not colon or "/" in tag:
        return repository, at + digest
    return head, colon + tag + at + digest


def _in_full(name: str) -> str:
    first, slash, _ = name.partition("/")
    if not slash:
        return f"{_DEFAULT_HOST}/library/{name}"
    is_host = "." in first or ":" in first or first == "localhost"
    return name if is_host else f"{_DEFAULT_HOST}/{name}"
