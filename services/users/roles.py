"""What a user may be."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Role(StrEnum):
    USER = "user"
    ADMIN = "admin"


def in_order(roles: Iterable[str]) -> list[str]:
    """Each role once, in the order above. ValueError on an unknown one."""
    wanted = {Role(role) for role in roles}
    return [role.value for role in Role if role in wanted]
