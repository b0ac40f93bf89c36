"""Who may read and who may act: dependencies for the routes of the service.

`reading` lets in everybody, or who has the token, as the settings say. A browser may show that it has the token by a cookie
that `sign_in` gave it; the cookie does not contain the token, and is good for reading only.

`acting` always asks for the token, in the header `Authorization: Bearer TOKEN`. A browser adds no such header by itself, so
another site that the same browser has open cannot act in its user's name.

Both are coroutines, although they wait for nothing: FastAPI calls a plain function in another thread, which takes longer than
they do.
"""

import hashlib
import hmac
from typing import Annotated

from fastapi import Depends, HTTPException, Request

from slimsweep.service.settings import Settings

COOKIE = "slimsweep-reading"
HOW = "send the header 'Authorization: Bearer TOKEN' with the token of --token-file, or else Ray's"


class NotSignedIn(HTTPException):
    """Reading without the token, or with a wrong one; who asks for a page gets one to sign in."""


def settings_of(request: Request) -> Settings:
    """The settings of the service that answers a request."""
    found: Settings = request.app.state.settings
    return found


async def reading(request: Request) -> None:
    """Let a request read, or refuse it.

    Raises:
        NotSignedIn: 401 without a token, 403 with a wrong one.
    """
    settings = settings_of(request)
    if settings.reading == "open":
        return
    if "authorization" in request.headers:
        _check(request, settings, NotSignedIn)
    elif not _same(request.cookies.get(COOKIE, ""), reading_key(settings.token)):
        raise NotSignedIn(401, f"reading needs the token here: {HOW}", {"WWW-Authenticate": "Bearer"})


async def acting(request: Request) -> None:
    """Let a request act, or refuse it.

    Raises:
        HTTPException: 401 without a token in its header, 403 with a wrong one, or where the service has no token at all.
    """
    settings = settings_of(request)
    if not settings.token:
        raise HTTPException(
            403, "nobody may act here, since this service has no token: start it with --token-file, or make Ray's token"
        )
    _check(request, settings, HTTPException)


def check_token(request: Request) -> None:
    """Refuse a request without the token in its header.

    Raises:
        HTTPException: 401 without a token, 403 with a wrong one.
    """
    _check(request, settings_of(request), HTTPException)


Reader = Annotated[None, Depends(reading)]
Actor = Annotated[None, Depends(acting)]


def reading_key(token: str) -> str:
    """What the cookie of a reader holds: it follows from the token, and does not tell it."""
    return hmac.new(token.encode(), b"slimsweep: may read", hashlib.sha256).hexdigest()


def _check(request: Request, settings: Settings, refusal: type[HTTPException]) -> None:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given.strip():
        raise refusal(401, f"this needs the token: {HOW}", {"WWW-Authenticate": "Bearer"})
    if not settings.token or not _same(given.strip(), settings.token):
        raise refusal(403, "the token is not that of this service")


def _same(given: str, wanted: str) -> bool:
    """Whether two texts are equal, in a time that does not tell how much of them is."""
    return hmac.compare_digest(given.encode(errors="replace"), wanted.encode())
