"""Serves the page of a run: the files of `deploy/page`, as they are, and with headers that let it do nothing else.

The page holds no facts of the run and no secret, so its files need no token; what it shows it asks for at /v1, where
the guard decides. `deploy/control/app.py` calls `add_page`, `deploy/control/guard.py` asks for `PAGE_PATHS`.
"""

from importlib.resources import files
from typing import Final

from fastapi import FastAPI, Request, Response

TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES: Final = (
    "index.html",
    "style.css",
    "icon.svg",
    "main.js",
    "words.js",
    "dom.js",
    "curves.js",
    "history.js",
    "sections.js",
    "steering.js",
)
PATHS: Final = {("/" if name == "index.html" else f"/page/{name}"): name for name in FILES}
PAGE_PATHS: Final = frozenset(PATHS)
"""Open to everybody who reaches the port."""
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Let the application serve the page at `/`; its files are read once, here."""
    folder = files("deploy.page")
    contents = {path: (folder / name).read_bytes() for path, name in PATHS.items()}

    async def serve(request: Request) -> Response:
        path = request.scope["path"]
        suffix = "." + PATHS[path].rpartition(".")[2]
        return Response(contents[path], headers=HEADERS, media_type=TYPES[suffix])

    for path in PATHS:
        app.add_api_route(path, serve, methods=["GET"], include_in_schema=False, response_model=None)
