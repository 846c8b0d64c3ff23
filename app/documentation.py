"""The API's description, with examples: for tools at `/openapi.json`, for people at `/docs`."""

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse

from app.documentation_page import documentation_page
from app.examples import add_examples
from app.schemas import Problem

router = APIRouter(include_in_schema=False)

# In the order of the page.
TAGS = [
    {"name": "jobs", "description": "A job is one video on its way to twice its size."},
    {"name": "live", "description": "What can be seen of a job before it is done."},
    {"name": "uploads", "description": "Files that are sent on their own, to become jobs afterwards."},
    {"name": "session", "description": "For pages in a browser, which cannot send a key with every request."},
    {"name": "models", "description": "The networks to choose from."},
    {"name": "health", "description": "For those who run the service."},
]


class DocumentedApi(FastAPI):
    """FastAPI whose description also has examples, and `Problem`, to which every error refers."""

    _page: str | None = None

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            document["components"]["schemas"]["Problem"] = Problem.model_json_schema()
            for methods in document["paths"].values():
                for operation in methods.values():
                    _drop_empty_answers(operation)
                    _drop_null_parameters(operation)
            add_examples(document)
        assert self.openapi_schema is not None
        return self.openapi_schema

    def page(self) -> str:
        self._page = self._page or documentation_page(self.openapi())
        return self._page


def _drop_empty_answers(operation: dict[str, Any]) -> None:
    """FastAPI takes an answer of which it was told nothing for JSON of any kind."""
    for answer in operation["responses"].values():
        if answer.get("content") == {"application/json": {"schema": {}}}:
            del answer["content"]


def _drop_null_parameters(operation: dict[str, Any]) -> None:
    """What may be left out is None to us; but no URL and no header can say null."""
    for parameter in operation.get("parameters", []):
        schema = parameter["schema"]
        kinds = [kind for kind in schema.pop("anyOf", []) if kind != {"type": "null"}]
        if kinds:
            [kind] = kinds
            schema |= kind


@router.get("/docs")
async def get_documentation(request: Request) -> HTMLResponse:
    return HTMLResponse(request.app.page())
