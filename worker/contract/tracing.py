"""Traces (OpenTelemetry) for operators who ask for them: by the extra `tracing`, and OTEL_EXPORTER_OTLP_ENDPOINT.

    POST /v1/jobs ──▶ job.json: trace_parent ──▶ plan, segment 0..n-1, assemble, fetch, webhook
    (FastAPI's span)                             (spans of ours, in whichever process does it)

The context travels in the job's record, which every task reads: so a task that is done again after a crash, or handed
out anew from storage, belongs to the same trace. Unless `start_tracing` has been called, and found both, nothing of
OpenTelemetry is imported here and all else does nothing.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog

from worker.contract.settings import TracingSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = structlog.get_logger(__name__)

# A process that is killed takes with it what it has not sent yet.
_SEND_EVERY_MILLISECONDS = 1000
# A collector that does not answer must not hold up a stop.
_LAST_SEND_SECONDS = 2.0

_provider: "TracerProvider | None" = None


def start_tracing(service: str) -> None:
    """Send spans from now on, in the name of `service`, where that is configured. Once per process, after any fork.

    The thread that sends them, and its lock, would not survive the fork.
    """
    global _provider
    if not TracingSettings().endpoint:  # an empty variable is how compose files leave it out
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("tracing_unavailable", reason="pip install 'twostep-vsr[tracing]' gives what is missing")
        return
    resource = Resource.create({"service.name": service, "service.version": version("twostep-vsr")})
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    # The exporter reads its address, its headers and its time limit from the environment by itself.
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=_SEND_EVERY_MILLISECONDS))
    trace.set_tracer_provider(_provider)


def stop_tracing() -> None:
    """Send what is left, at the end of a process."""
    if _provider:
        # Beside us: the SDK has a time limit here, and does not keep it where nobody answers.
        sending = threading.Thread(target=_provider.force_flush, daemon=True)
        sending.start()
        sending.join(_LAST_SEND_SECONDS)


@contextmanager
def span(name: str, trace_parent: str | None, **facts: str | int | float | None) -> Iterator[None]:
    """What happens inside is one step of the trace that `trace_parent` names, or of a new one."""
    if _provider is None:
        yield
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": trace_parent or ""})
    tracer = _provider.get_tracer("twostep-vsr")
    # What an exception says may be a secret: an address of Redis has its password.
    with tracer.start_as_current_span(name, context, record_exception=False, set_status_on_exception=False):
        note(**facts)
        try:
            yield
        except Exception as error:
            note_failure(type(error).__name__)
            raise


def note(**facts: str | int | float | None) -> None:
    """Put facts on the step under way; None is none."""
    if _provider:
        from opentelemetry import trace

        current = trace.get_current_span()
        current.set_attributes({f"vsr.{name}": fact for name, fact in facts.items() if fact is not None})


def note_failure(code: str) -> None:
    """Mark the step under way as failed."""
    if _provider:
        from opentelemetry import trace

        trace.get_current_span().set_status(trace.StatusCode.ERROR, code)


def current_trace_parent() -> str | None:
    """Of the step under way, for a job's record (the header `traceparent` of W3C). None: there is no trace."""
    if _provider is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def trace_id_of(trace_parent: str | None) -> dict[str, str]:
    """For the context of log lines: they lead to the trace, if there is one."""
    return {"trace_id": trace_parent.split("-")[1]} if trace_parent else {}
