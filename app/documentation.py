"""The API's description and its page: plain HTML from the OpenAPI document, no scripts, no other host."""

from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from app.schemas import Problem

router = APIRouter(include_in_schema=False)


class DocumentedApi(FastAPI):
    """FastAPI whose OpenAPI document also holds `Problem`, to which every error refers (`app.errors.responses`)."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        document["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return document


@router.get("/")
async def go_to_documentation() -> RedirectResponse:
    return RedirectResponse("docs")


@router.get("/docs")
async def get_documentation(request: Request) -> HTMLResponse:
    document = request.app.openapi()
    operations = [
        f"<dt><code>{method.upper()} {escape(path)}</code> {escape(operation.get('summary', ''))}</dt>"
        f"<dd>{escape(operation.get('description', ''))} Answers: {escape(', '.join(operation['responses']))}.</dd>"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    title = f"{escape(document['info']['title'])} {escape(document['info']['version'])}"
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><main><h1>{title}</h1><p>{escape(document['info']['description'])}</p>"
        f'<p>The whole description, for tools: <a href="openapi.json">openapi.json</a></p>'
        f"<dl>{''.join(operations)}</dl></main></html>"
    )
