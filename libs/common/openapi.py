"""flask-smorest as our services use it: strict JSON bodies, problem documents, an OpenAPI document."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import marshmallow as ma
from flask import Flask, Request, Response, jsonify
from flask_smorest import Api, Blueprint
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import HTTPException

from libs.common.errors import BadRequest, Invalid, UnsupportedMediaType
from libs.common.http_errors import PROBLEM_JSON, answer_http_exception


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def read_json(request: Request) -> Any:
    """The request's body. 415 when it doesn't say that it is JSON, 400 when it isn't."""
    if not request.is_json:
        raise UnsupportedMediaType("Send the body as JSON, with Content-Type: application/json.")
    try:
        return json.loads(request.get_data().decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise BadRequest("The JSON is nested too deeply.", code="malformed_json") from error
    except ValueError as error:
        raise BadRequest(f"The body is not valid JSON: {error}", code="malformed_json") from error


def require_no_body(request: Request) -> None:
    """For a POST that takes none, or an empty object: whoever sends more would believe that it counted."""
    if request.get_data() and read_json(request) != {}:
        raise Invalid("This request takes no body; send none.")


class StrictParser(FlaskParser):
    """Takes a body for what it says it is, instead of ignoring what it can't read."""

    DEFAULT_UNKNOWN_BY_LOCATION = {  # noqa: RUF012  webargs declares it so.
        "json": None,
        "query": ma.RAISE,
        "path": None,
        "headers": ma.EXCLUDE,
    }

    def load_json(self, req: Request, schema: ma.Schema) -> Any:  # noqa: ARG002  The signature is webargs'.
        return read_json(req)


class ApiBlueprint(Blueprint):
    """A flask-smorest blueprint whose arguments are read by `StrictParser`."""

    ARGUMENTS_PARSER = StrictParser()


class ProblemSchema(ma.Schema):
    """RFC 9457, as every error of the API is answered."""

    type = ma.fields.String()
    title = ma.fields.String(required=True)
    status = ma.fields.Integer(required=True)
    detail = ma.fields.String(required=True)
    code = ma.fields.String(required=True, metadata={"description": "Stable, snake_case, for programs."})
    requestId = ma.fields.String()  # noqa: N815  The name on the wire.
    errors = ma.fields.Dict(metadata={"description": "Field → list of messages (422 only)."})


class ServiceApi(Api):
    """The service's OpenAPI document; errors stay in `http_errors`."""

    ERROR_SCHEMA = ProblemSchema
    DEFAULT_ERROR_RESPONSE_NAME = "PROBLEM"

    def _register_responses(self) -> None:
        # As the parent does, which neither knows our default's name nor that problems have a type of their own.
        names = {status.name: status.phrase for status in HTTPStatus}
        for name, description in {**names, self.DEFAULT_ERROR_RESPONSE_NAME: "What went wrong."}.items():
            content = {PROBLEM_JSON: {"schema": self.ERROR_SCHEMA}}
            self.spec.components.response(name, {"description": description, "content": content}, lazy=True)

    def handle_http_exception(self, error: HTTPException) -> Response:
        return answer_http_exception(error)


def create_api(app: Flask, *, title: str) -> ServiceApi:
    """Attach the API to `app`; register its blueprints on the result. Serves `/openapi.json`."""
    app.config.update(
        API_TITLE=title,
        API_VERSION="v1",
        OPENAPI_VERSION="3.0.3",
    )
    api = ServiceApi(
        app,
        spec_kwargs={
            "components": {
                "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
            }
        },
    )

    @app.get("/openapi.json")
    def openapi() -> Response:
        return jsonify(api.spec.to_dict())

    return api
