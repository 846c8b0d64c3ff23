"""Small bodies of JSON, read here: FastAPI would take one of any length into memory, and wait for it for ever."""

import asyncio
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from app.errors import InvalidRequestError, UploadStalledError
from app.settings import GatewaySettings

# Several times what any of them needs.
_MAX_BYTES = 4096

_Model = TypeVar("_Model", bound=BaseModel)


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The model's JSON schema; what it refers to is among the components already, as responses use it too."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


def json_body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """What OpenAPI is to know of a body that `read_json` reads."""
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": body_schema(model)}}}}


async def read_json(
    request: Request, settings: GatewaySettings, model: type[_Model], if_left_out: _Model | None = None
) -> _Model:
    """The request's body as `model`, to the letter: 0 is no false. It has to be here as soon as a head has.

    `if_left_out`: what no body at all stands for; None: it is needed. Raises `InvalidRequestError` for what is no such
    JSON or too long, `UploadStalledError` for what does not come.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(settings.head_timeout_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MAX_BYTES:
                    raise InvalidRequestError(f"The body has more than {_MAX_BYTES} bytes.")
    except TimeoutError:
        raise UploadStalledError(
            f"The body was not complete after {settings.head_timeout_seconds:g} seconds."
        ) from None
    if not body and if_left_out is not None:
        return if_left_out
    try:
        return model.model_validate_json(bytes(body), strict=True)
    except ValidationError as error:
        raise InvalidRequestError.from_validation(error.errors()) from error
