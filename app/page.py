"""The page for people, at `/`: files of this package, which load nothing from any other host.

static/index.html, style.css       what is there before any script has run
static/modules/                    one concern each, as the browser runs them: nothing is built
static/vendor/{name}-{version}/    libraries and the typeface, unmodified
"""

from os import PathLike, stat_result
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_FOLDER = Path(__file__).parent / "static"
_VENDORED = _FOLDER / "vendor"

# blob: what scripts hand to the browser: hls.js its segments, a chosen file whose length is looked up, a picture.
_CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "font-src 'self'",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
_A_YEAR_UNCHANGED = "public, max-age=31536000, immutable"
_ASK_WHETHER_CHANGED = "no-cache"
# Not left to the machine's own table: a browser runs no module that is called plain text.
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}


class _PageFiles(StaticFiles):
    """Starlette's, with ETags and 304; what is vendored has its version in its path, so it is never asked for again."""

    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        is_vendored = Path(full_path).is_relative_to(_VENDORED)
        media_type = _MEDIA_TYPES.get(Path(full_path).suffix)
        if media_type:
            response.headers["Content-Type"] = media_type
        response.headers["Cache-Control"] = _A_YEAR_UNCHANGED if is_vendored else _ASK_WHETHER_CHANGED
        response.headers["Content-Security-Policy"] = _CONTENT_SECURITY_POLICY
        return response


def add_page(app: FastAPI) -> None:
    """Serve `/` and `/page/...`. Without a key: the files hold no secret, and the page asks for the key itself."""
    files = GZipMiddleware(_PageFiles(directory=_FOLDER, html=True))
    app.router.routes += [Route("/", files, methods=["GET"]), Mount("/page", files)]
