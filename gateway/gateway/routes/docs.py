"""`/docs`: the API for people, on a page of our own, because the framework's loads its scripts from another site."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response

router = APIRouter(include_in_schema=False)
_PAGE = Path(__file__).parents[1] / "docs.html"
_ONLY_OURSELVES = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


@router.get("/docs")
def docs() -> Response:
    """Return the page; it reads `/openapi.json`."""
    return Response(
        _PAGE.read_text(encoding="utf-8"), media_type="text/html", headers={"Content-Security-Policy": _ONLY_OURSELVES}
    )
