"""The users service's requests and answers, as docs and as checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import marshmallow as ma
from marshmallow import fields, validate

from libs.common.clock import utc_now
from libs.common.paging import PageQuery
from libs.common.schema import BaseSchema, Flag, Text, Timestamp, Whole
from services.users import emails
from services.users.passwords import MAX_BYTES, MIN_BYTES
from services.users.roles import Role

Check = Callable[[str], Any]


def _not_blank(text: str) -> None:
    if not text.strip():
        raise ma.ValidationError("Must not be blank.")


class Name(Text):
    def __init__(self, **kwargs: Any) -> None:
        checks: list[Check] = [validate.Length(1, 100), _not_blank]
        super().__init__(validate=checks, **kwargs)


class Email(Text):
    def __init__(self, **kwargs: Any) -> None:
        checks: list[Check] = [validate.Length(max=emails.MAX_LENGTH), _check_email]
        super().__init__(validate=checks, metadata={"format": "email"}, **kwargs)


class Password(Text):
    """Long enough to be safe, short enough for bcrypt, which counts bytes."""

    def __init__(self, **kwargs: Any) -> None:
        description = f"{MIN_BYTES} to {MAX_BYTES} bytes of UTF-8."
        metadata = {"format": "password", "description": description, "minLength": 2, "maxLength": MAX_BYTES}
        super().__init__(validate=_check_password, load_only=True, metadata=metadata, **kwargs)


def _check_email(text: str) -> None:
    try:
        emails.email_key(text)
    except ValueError as error:
        raise ma.ValidationError("Not a valid email address.") from error


def _check_password(text: str) -> None:
    if not MIN_BYTES <= len(text.encode()) <= MAX_BYTES:
        raise ma.ValidationError(f"Must have {MIN_BYTES} to {MAX_BYTES} bytes in UTF-8.")


def _roles_field(**kwargs: Any) -> fields.List[str]:
    known = validate.OneOf([role.value for role in Role])
    return fields.List(Text(validate=known), validate=validate.Length(min=1), **kwargs)


class _ConfirmedPassword(BaseSchema):
    """Where a password is set it may be sent twice, against slips of the hand."""

    @ma.validates_schema
    def check_confirmation(self, data: Mapping[str, Any], **_kwargs: Any) -> None:
        if "password_confirm" in data and data["password_confirm"] != data.get("password"):
            raise ma.ValidationError("Must be the same as password.", "passwordConfirm")


class Signup(_ConfirmedPassword):
    name = Name(required=True)
    email = Email(required=True)
    password = Password(required=True)
    password_confirm = Password(required=True)


class CreateUser(Signup):
    roles = _roles_field(required=True)


class ChangeUser(_ConfirmedPassword):
    """Only what is sent changes."""

    name = Name()
    email = Email()
    password = Password()
    password_confirm = Password()
    current_password = Text(
        load_only=True,
        metadata={"format": "password", "description": "Need not be sent; but it must be right when it is."},
    )
    enabled = Flag(metadata={"description": "Admins only."})


class ChangeRoles(BaseSchema):
    roles = _roles_field(required=True)


class Login(BaseSchema):
    """Any text will do here: what can't be right is refused like what is wrong."""

    email = Text(required=True)
    password = Text(required=True, load_only=True, metadata={"format": "password"})


class Refresh(BaseSchema):
    refresh_token = Text(required=True)


class CreatePersonalToken(BaseSchema):
    name = Name(required=True)
    expires_at = Timestamp(load_default=None, allow_none=True)

    @ma.validates_schema
    def check_future(self, data: Mapping[str, Any], **_kwargs: Any) -> None:
        if data["expires_at"] is not None and data["expires_at"] <= utc_now():
            raise ma.ValidationError("Must be in the future.", "expiresAt")


class ListUsers(PageQuery):
    pass


class ListPersonalTokens(PageQuery):
    pass


class User(BaseSchema):
    """Without a token, and for other users, only `id` and `name`."""

    id = fields.UUID(required=True)
    name = fields.String(required=True)
    email = fields.String()
    roles = fields.List(fields.String())
    enabled = fields.Boolean()
    created_at = Timestamp()
    updated_at = Timestamp()


class LoggedInUser(User):
    """The user and the tokens of a new session."""

    token = fields.String(required=True)
    token_type = fields.String(required=True)
    expires_in = fields.Integer(required=True, metadata={"description": "Seconds."})
    refresh_token = fields.String(required=True)


class UserPage(BaseSchema):
    items = fields.List(fields.Nested(User), required=True)
    next_cursor = fields.String(required=True, allow_none=True)


class PersonalToken(BaseSchema):
    id = fields.UUID(required=True)
    name = fields.String(required=True)
    created_at = Timestamp(required=True)
    expires_at = Timestamp(required=True, allow_none=True)
    last_used_at = Timestamp(required=True, allow_none=True)


class NewPersonalToken(PersonalToken):
    token = fields.String(required=True, metadata={"description": "Shown this once."})


class PersonalTokenPage(BaseSchema):
    items = fields.List(fields.Nested(PersonalToken), required=True)
    next_cursor = fields.String(required=True, allow_none=True)


class CheckSession(BaseSchema):
    """Internal: does a token of this session still count?"""

    user_id = fields.UUID(required=True)
    session_id = fields.UUID(required=True)
    version = Whole(required=True)


class ExchangeToken(BaseSchema):
    """Internal: a personal access token to be exchanged for a JWT."""

    token = Text(required=True)


class DeletionsQuery(BaseSchema):
    since = Timestamp(required=True)


class UserFacts(BaseSchema):
    """Internal: what other services may know of a user."""

    id = fields.UUID()
    name = fields.String()
    email = fields.String()
    enabled = fields.Boolean()


class Deletion(BaseSchema):
    user_id = fields.UUID()
    deleted_at = Timestamp()
