"""The public keys, for whoever verifies our tokens."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from services.users.keys import KeySet

# Others may keep the set that long; they fetch it anew for a key id that they don't know.
_CACHE_SECONDS = 60


def create_key_routes(*, keys: KeySet) -> Blueprint:
    routes = Blueprint("keys", __name__)

    @routes.get("/.well-known/jwks.json")
    def publish_keys() -> Response:
        response = jsonify(keys.publish())
        response.headers["Cache-Control"] = f"public, max-age={_CACHE_SECONDS}"
        return response

    return routes
