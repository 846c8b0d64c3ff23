"""One logging configuration for every process: one JSON line per event on stderr, without secrets.

The context (`structlog.contextvars.bind_contextvars(request_id=..., job_id=...)`) is on every line, also on those of
libraries that log through the standard library.
"""

import logging
import re
import sys
import traceback
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

LogFormat = Literal["json", "console"]

_MASK = "***"
_SECRET_NAME = re.compile(r"api[-_]?keys?$|authorization|password|secret|token", re.IGNORECASE)
# The user and password of an address such as redis://:password@host, and what is named so in its query.
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]+(?=@)|(?<=password=)[^&\s\"']+")


def configure_logging(log_format: LogFormat = "json", level: str = "INFO") -> None:
    """Set up structlog and the standard library's root logger alike. `console` is for people at a terminal."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[Processor] = (
        [structlog.processors.format_exc_info, mask_secrets, structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [mask_secrets, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_traceback)]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    """Structlog's own shows every local variable, and so whatever is secret among them."""
    stream.write("\n" + _IN_ADDRESS.sub(_MASK, "".join(traceback.format_exception(*exc_info))))


def mask_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Hide values whose name says that they are secret, and passwords inside addresses."""
    for name, value in event.items():
        if _SECRET_NAME.search(name):
            event[name] = _MASK
        elif isinstance(value, str):
            event[name] = _IN_ADDRESS.sub(_MASK, value)
    return event
