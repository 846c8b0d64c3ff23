"""The API describes itself, without another host."""

import re

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


def test_the_page_names_every_call_and_no_other_host(gateway: RunningGateway) -> None:
    page = gateway.http.get("/docs")

    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    for method, path in PROMISED:
        assert f"<code>{method.upper()} {path}</code>" in page.text
    assert "//" not in page.text
    assert "<script" not in page.text


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
