"""Email addresses: which are accepted, and when two are the same."""

from __future__ import annotations

import unicodedata

from marshmallow import ValidationError
from marshmallow.validate import Email

MAX_LENGTH = 254

_has_the_form = Email()


def email_key(address: str) -> str:
    """The address as it is compared: case, Unicode form and the domain's spelling make no difference.

    ValueError when it isn't an address.
    """
    folded = unicodedata.normalize("NFC", address.casefold())
    # Quoted names may hold line breaks; nobody uses them.
    if len(address) > MAX_LENGTH or address.startswith('"'):
        raise ValueError("not an email address")
    try:
        _has_the_form(folded)
    except ValidationError as error:
        raise ValueError("not an email address") from error
    local, _, domain = folded.rpartition("@")
    return f"{local}@{domain.encode('idna').decode()}"
