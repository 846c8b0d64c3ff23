"""The API describes itself, without another host."""

import re
from html import unescape
from typing import Any

from jsonschema_rs import Draft202012Validator

from app.examples import JOB_ID
from tests.app.conftest import RunningGateway
from worker.contract.job import JobOptions

PROMISED = {
    ("post", "/v1/jobs"),
    ("get", "/v1/jobs"),
    ("get", "/v1/jobs/{job_id}"),
    ("delete", "/v1/jobs/{job_id}"),
    ("post", "/v1/jobs/{job_id}/cancel"),
    ("post", "/v1/jobs/{job_id}/retry"),
    ("get", "/v1/jobs/{job_id}/events"),
    ("get", "/v1/jobs/{job_id}/stream.m3u8"),
    ("get", "/v1/jobs/{job_id}/stream/{name}"),
    ("get", "/v1/jobs/{job_id}/thumbnail"),
    ("post", "/v1/jobs/{job_id}/preview"),
    ("get", "/v1/jobs/{job_id}/preview"),
    ("get", "/v1/jobs/{job_id}/source"),
    ("get", "/v1/jobs/{job_id}/result"),
    ("get", "/v1/jobs/{job_id}/report"),
    ("get", "/v1/jobs/{job_id}/webhook"),
    ("post", "/v1/jobs/{job_id}/webhook/replay"),
    ("put", "/v1/uploads/{upload_id}"),
    ("options", "/v1/uploads"),
    ("post", "/v1/uploads"),
    ("head", "/v1/uploads/{upload_id}"),
    ("patch", "/v1/uploads/{upload_id}"),
    ("delete", "/v1/uploads/{upload_id}"),
    ("post", "/v1/estimate"),
    ("get", "/v1/session"),
    ("put", "/v1/session"),
    ("delete", "/v1/session"),
    ("get", "/v1/models"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/metrics"),
}


def test_the_page_names_every_call_and_loads_nothing_from_another_host(gateway: RunningGateway) -> None:
    page = gateway.http.get("/docs")

    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    for method, path in PROMISED:
        assert f">{method.upper()} {path}</code>" in page.text
    loaded = re.findall(r'(?:src|href)="([^"#]*)', page.text)
    assert {"page/style.css", "page/docs.css", "openapi.json"} <= set(loaded)
    assert not [url for url in loaded if "//" in url or url.startswith("/")]
    assert "<script" not in page.text
    for url in {url for url in loaded if url}:
        assert gateway.http.get(url).status_code == 200


def test_the_page_shows_how_each_call_is_made(gateway: RunningGateway) -> None:
    page = unescape(gateway.http.get("/docs").text)

    for command in (
        'curl -H "X-API-Key: $VSR_API_KEY" -F file=@holiday.mp4 -F preset=aligned "$VSR_URL/v1/jobs"',
        f'curl -H "X-API-Key: $VSR_API_KEY" -N "$VSR_URL/v1/jobs/{JOB_ID}/events"',
        f'curl -H "X-API-Key: $VSR_API_KEY" -X DELETE "$VSR_URL/v1/jobs/{JOB_ID}"',
        "-H 'Upload-Length: 14680064'",
        'curl "$VSR_URL/readyz"',
    ):
        assert command in page
    # And what it was given is shown as it is, also where it looks like markup
    assert "<code>" not in re.sub(r"</?code[^>]*>", "", page)
    assert '"status": "running"' in page


def test_every_call_has_examples_that_its_own_schema_accepts(gateway: RunningGateway) -> None:
    # Given
    document = gateway.http.get("/openapi.json").json()

    def is_accepted(example: object, schema: dict[str, Any]) -> bool:
        whole = schema | {"components": document["components"]}
        return bool(Draft202012Validator(whole).is_valid(example))

    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            call = f"{method.upper()} {path}: give it an example in app.examples"
            # Then what is sent has one, but for bytes
            for parameter in operation.get("parameters", []):
                assert is_accepted(parameter["example"], parameter["schema"]), f"{call} ({parameter['name']})"
                assert not is_accepted(None, parameter["schema"]), f"no URL and no header can say null: {parameter}"
            for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                if not media_type.endswith("octet-stream"):
                    assert is_accepted(content["example"], content["schema"]), call
            # And so has what comes back
            for status, answer in operation["responses"].items():
                for media_type, content in answer.get("content", {}).items():
                    if media_type == "application/problem+json":
                        for example in content["examples"].values():
                            assert is_accepted(example["value"], content["schema"])
                            assert example["value"]["detail"], f"{call}: {example['value']['code']}"
                    elif media_type == "text/event-stream":
                        assert content["example"].startswith("event: status\ndata: {")
                    elif content["schema"].get("format") != "binary":
                        assert is_accepted(content["example"], content["schema"]), f"{call} ({status})"


def test_the_description_declares_every_call_and_its_problems(gateway: RunningGateway) -> None:
    # When
    document = gateway.http.get("/openapi.json").json()

    # Then every call is there, once
    operations = {
        (method, path): operation for path, item in document["paths"].items() for method, operation in item.items()
    }
    assert set(operations) == PROMISED
    ids = [operation["operationId"] for operation in operations.values()]
    assert len(set(ids)) == len(ids)
    # And every problem refers to one schema and has an example under its code
    for operation in operations.values():
        for status, response in operation["responses"].items():
            if (problem := response.get("content", {}).get("application/problem+json")) is None:
                continue
            assert problem["schema"] == {"$ref": "#/components/schemas/Problem"}
            for code, example in problem["examples"].items():
                assert (example["value"]["code"], str(example["value"]["status"])) == (code, status)
    # And nothing refers to what is not there
    references = set(re.findall(r'"#/components/schemas/(\w+)"', gateway.http.get("/openapi.json").text))
    assert references <= set(document["components"]["schemas"])


def test_the_form_offers_every_option_and_no_null(gateway: RunningGateway) -> None:
    document = gateway.http.get("/openapi.json").json()

    form = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]

    assert set(form["properties"]) == {"file", "reuse_result", "webhook_url", *JobOptions.model_fields}
    assert "null" not in str(form)
