from __future__ import annotations

import pytest
from flask import Flask

from libs.common.config import Secret
from libs.common.errors import Unauthorized
from libs.common.service_auth import require_service_token, service_headers

TOKEN = Secret("the service token")


def check(header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    with Flask(__name__).test_request_context(headers=headers):
        require_service_token(TOKEN)


def test_our_own_services_pass():
    check(service_headers(TOKEN)["Authorization"])


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "the service token", "bearer the service token", "Bearer é"],
)
def test_nobody_else_does(header: str | None):
    with pytest.raises(Unauthorized):
        check(header)
