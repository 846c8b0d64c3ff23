"""Traces: from the upload to the last segment one, though requests, worker processes and courier each have a part."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.end_to_end.conftest import PRESET, wait_for, write_moving_video
from tests.end_to_end.test_courier import other_host
from tests.end_to_end.test_serve import serving
from tests.end_to_end.test_watching import kill_the_worker_in_mid_work

TRACE_ID, CLIENTS_SPAN_ID = "5b8aa5a2d2c872e8321cf37308d69df2", "051581bf3cb55c13"
TRACE_PARENT = f"00-{TRACE_ID}-{CLIENTS_SPAN_ID}-01"


class Collector:
    """What a collector of OpenTelemetry hears: spans, and which service each is from."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Span]] = []

    def note(self, body: bytes) -> None:
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            [service] = [one.value.string_value for one in of_resource.resource.attributes if one.key == "service.name"]
            self.heard += [(service, span) for scope in of_resource.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Span]:
        return [span for _, span in self.heard if span.name == name]

    @property
    def names(self) -> Counter[str]:
        return Counter(span.name for _, span in self.heard)


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.note(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Not into the test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def facts_of(span: Span) -> dict[str, object]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value") for one in span.attributes}


def is_ended(job: str) -> bool:
    return httpx2.get(job).json()["status"] not in ("queued", "running")


def test_upload_submission_every_segment_and_the_webhook_are_one_trace_even_over_a_kill(tmp_path: Path) -> None:
    # Given a service that sends traces, a client that names its own, and somebody who wants to hear of the end
    video = write_moving_video(tmp_path / "clip.mp4", frames=120)
    settings = {"VSR_WEBHOOK_SECRET": "a secret of more than twenty-four letters", "VSR_ALLOW_LOOPBACK_TARGETS": "true"}
    settings |= {"VSR_CPU_THREADS": "1"}
    with (
        collecting() as (collector, endpoint),
        other_host(b"") as (receiver, webhook_url),
        serving(tmp_path / "data", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **settings) as (url, process),
        httpx2.Client(base_url=url, headers={"traceparent": TRACE_PARENT}) as client,
    ):
        # When a video is uploaded, made a job of, and its worker killed in the middle
        client.put("/v1/uploads/one", content=video.read_bytes())
        asked = {"upload_id": "one", "preset": PRESET, "webhook_url": webhook_url}
        posted = client.post("/v1/jobs", json=asked)
        assert posted.status_code == 202, posted.text
        job = url + posted.headers["Location"]
        wait_for("the plan's span, which the kill would take along", lambda: collector.named("vsr plan"))
        wait_for("a finished segment", lambda: httpx2.get(job).json()["progress"]["segments_done"] >= 1)
        kill_the_worker_in_mid_work(tmp_path / "data")
        wait_for("the job's end", lambda: is_ended(job))
        wait_for("the webhook", lambda: receiver.heard)
        wait_for("the last spans", lambda: collector.named("vsr assemble") and collector.named("vsr webhook"))
        failing = httpx2.post(f"{url}/v1/jobs", files={"file": ("no.mp4", b"no video" * 999)}, data={"preset": PRESET})
        wait_for("the failed job's end", lambda: is_ended(url + failing.headers["Location"]))
        process.terminate()
        process.wait(60)
        ended = [json.loads(line) for line in (tmp_path / "serve.log").read_text().splitlines() if line[:1] == "{"]

    # Then both requests are the client's children, and all work is the submission's child
    ours = [(service, span) for service, span in collector.heard if span.trace_id.hex() == TRACE_ID]
    parents = {span.name: span.parent_span_id.hex() for _, span in ours}
    [submission] = [span for _, span in ours if span.name == "POST /v1/jobs"]
    assert parents["PUT /v1/uploads/{upload_id}"] == parents["POST /v1/jobs"] == CLIENTS_SPAN_ID
    work = {"vsr plan", "vsr segment", "vsr assemble", "vsr webhook"}
    assert {name: parents[name] for name in work} == dict.fromkeys(work, submission.span_id.hex())
    assert {service for service, _ in ours} == {"vsr-gateway", "vsr-worker", "vsr-courier"}

    # And every segment is there with its times, also the one that was begun twice; only those that the killed process
    # had finished in its last second may be gone with it
    segments = {facts["vsr.segment"]: facts for facts in (facts_of(span) for _, span in ours) if "vsr.segment" in facts}
    assert set(segments) == set(range(5 - len(segments), 5))
    assert {"vsr.job_id", "vsr.request_id", "vsr.frames", "vsr.preset", "vsr.seconds.hat"} <= set(segments[4])
    assert any(facts["vsr.attempt"] == 2 for facts in segments.values())

    # And a failure is marked as one, in a trace of its own; what asks every few seconds is in none
    [failed] = [span for span in collector.named("vsr plan") if span.trace_id.hex() != TRACE_ID]
    assert (failed.status.code, failed.status.message) == (Status.STATUS_CODE_ERROR, "not_a_video")
    assert not any("/readyz" in name or "/metrics" in name for name in collector.names)

    # And every line about the job leads to the trace
    job_id, request_id = posted.json()["id"], posted.headers["X-Request-ID"]
    about = [line for line in ended if line.get("job_id") == job_id]
    assert {"job accepted", "job_started", "segment_finished", "job_succeeded", "webhook_attempted"} <= {
        line["event"] for line in about
    }
    # (polls have traces of their own, supervisors none)
    by_others = ("app.access", "worker.supervisor", "worker.reconcile")
    of_work = [line for line in about if line["logger"] not in by_others]
    assert {line["request_id"] for line in of_work} == {request_id}
    assert {line["trace_id"] for line in of_work} == {TRACE_ID}
