"""Log lines are JSON, carry the context and never a secret."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from worker.contract.logs import configure_logging


@pytest.fixture(autouse=True)
def as_it_was_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def test_lines_of_ours_and_of_libraries_carry_the_context(capsys: pytest.CaptureFixture[str]) -> None:
    # Given a job in the context
    configure_logging("json")
    structlog.contextvars.bind_contextvars(job_id="abc")

    # When we and a library log, one of them an exception
    structlog.get_logger("ours").info("segment done", index=3)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("theirs").exception("it %s", "failed")

    # Then each is one line of JSON
    ours, theirs = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["index"], ours["job_id"], ours["level"]) == ("segment done", 3, "abc", "info")
    assert (theirs["event"], theirs["job_id"], theirs["logger"]) == ("it failed", "abc", "theirs")
    assert "ValueError: broken" in theirs["exception"]


def test_secrets_are_masked_wherever_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    # Given
    configure_logging("json")

    # When secrets are logged under their names, in an address and in an exception
    structlog.get_logger().warning(
        "no answer from redis://:hunter2@db:6379/0", api_key="hunter2", Authorization="hunter2"
    )
    try:
        raise ConnectionError("rediss://user:hunter2@db is away")
    except ConnectionError:
        logging.getLogger("theirs").exception("away")

    # Then
    output = capsys.readouterr().err
    assert "hunter2" not in output
    assert "redis://***@db:6379/0" in output
