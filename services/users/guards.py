"""Who may call a route. The guard runs before the body is read, and hands the caller to the view."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from flask import request

from libs.common.openapi import ApiBlueprint
from libs.common.tokens import Identity, TokenVerifier, read_bearer, require_admin, require_identity

View = Callable[..., Any]
Guard = Callable[[View], View]

Security = list[dict[str, list[str]]]

_BEARER: Security = [{"bearer": []}]
_BEARER_OR_NOBODY: Security = [{"bearer": []}, {}]


class Guards:
    """Decorators for the views of one blueprint; each view takes the keyword `caller`."""

    def __init__(self, routes: ApiBlueprint, verifier: TokenVerifier) -> None:
        self._routes = routes
        self._verifier = verifier

    @property
    def user(self) -> Guard:
        """Anybody with a token: 401 without."""
        return self._guard(lambda: require_identity(self._verifier, request), _BEARER)

    @property
    def admin(self) -> Guard:
        """401 without a token, 403 without the role."""
        return self._guard(lambda: require_admin(self._verifier, request), _BEARER)

    @property
    def anyone(self) -> Guard:
        """`caller` is None without a token; a token that is sent must be valid."""
        return self._guard(self._find_caller, _BEARER_OR_NOBODY)

    def _find_caller(self) -> Identity | None:
        token = read_bearer(request)
        return None if token is None else self._verifier.verify(token)

    def _guard(self, find_caller: Callable[[], Identity | None], security: Security) -> Guard:
        def decorate(view: View) -> View:
            @wraps(view)
            def guarded(*args: Any, **kwargs: Any) -> Any:
                return view(*args, caller=find_caller(), **kwargs)

            documented: View = self._routes.doc(security=security)(guarded)
            return documented

        return decorate
