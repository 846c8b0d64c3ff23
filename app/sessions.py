"""A browser's session: a cookie that is the key, for `<video>`, `<img>` and EventSource, which send no headers of ours.

The cookie is set without a path: so its path is the folder of this address as the browser sees it, `/v1/`, also behind
a prefix that a proxy takes away. It ends with the browser, no script can read it, and no other site can have it sent.
"""

from typing import Annotated

from anyio import WouldBlock
from fastapi import APIRouter, Depends, Request, Response

from app.bodies import json_body, read_json
from app.dependencies import ServicesDep, is_let_in, is_sent_by_another_page
from app.errors import (
    InvalidRequestError,
    TooManyConnectionsError,
    UnauthorizedError,
    UploadStalledError,
    responses,
)
from app.keys import SESSION_COOKIE, cookie_value
from app.schemas import OpenSession, Session

router = APIRouter(prefix="/v1/session", tags=["session"])


async def own_page(request: Request) -> None:
    """Else a page of another site could have its own key used in the user's name."""
    if is_sent_by_another_page(request):
        raise UnauthorizedError("A session is opened and closed by this service's own page.")


async def session_wish(request: Request, services: ServicesDep) -> OpenSession:
    """The body. Whoever has no key can make the gateway wait for one here alone, so only a few may at a time."""
    openings = services.session_openings
    try:
        openings.acquire_on_behalf_of_nowait(request)
    except WouldBlock:
        raise TooManyConnectionsError(int(openings.total_tokens)) from None
    try:
        return await read_json(request, services.settings, OpenSession)
    finally:
        openings.release_on_behalf_of(request)


@router.get("", summary="Whether a key is needed, and is there")
async def get_session(request: Request, services: ServicesDep) -> Session:
    return Session(needs_key=services.api_keys.are_configured, authenticated=await is_let_in(request, services))


@router.put(
    "",
    status_code=204,
    summary="Open a browser's session",
    dependencies=[Depends(own_page)],
    responses=responses(UnauthorizedError, UploadStalledError, InvalidRequestError, TooManyConnectionsError),
    openapi_extra=json_body(OpenSession),
)
async def put_session(
    request: Request, response: Response, services: ServicesDep, wish: Annotated[OpenSession, Depends(session_wish)]
) -> None:
    """Sets a cookie that counts as the key until the browser is closed.

    By the cookie only this service's own page can change anything; programs send the key itself.
    """
    key = wish.key.get_secret_value()
    if services.api_keys.find(key) is None:
        raise UnauthorizedError("The API key is not one of this service's keys.")
    response.set_cookie(
        SESSION_COOKIE,
        cookie_value(key),
        path=None,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


@router.delete(
    "",
    status_code=204,
    summary="Close a browser's session",
    dependencies=[Depends(own_page)],
    responses=responses(UnauthorizedError),
)
async def delete_session(response: Response) -> None:
    """Harmless where there is none."""
    response.set_cookie(SESSION_COOKIE, "", max_age=0, path=None, httponly=True, samesite="strict")
