"""The client against a real gateway: submit, wait, download, and what it says when something is wrong."""

import asyncio
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.client import (
    AsyncClient,
    Client,
    DamagedDownloadError,
    ForeignResponseError,
    NoResultResponseError,
    NotFoundResponseError,
    ProblemResponseError,
    Progress,
    RejectedResponseError,
    ServiceUnreachableError,
    TryLaterResponseError,
    UnauthorizedResponseError,
)
from app.client.uploads import Memory, memory_of
from tests.app.conftest import SOURCE_INFO, RunningGateway, StartGateway
from worker.contract.job import JobRecord, JobStatus, PartialResult, new_job_id

CONTENT = bytes(range(256)) * 20_000  # several chunks


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[Client]:
    with Client(gateway.url) as client:
        yield client


@pytest.fixture
def job(gateway: RunningGateway) -> JobRecord:
    """A finished job with `CONTENT` as its result."""
    record = gateway.add_job()
    gateway.finish_job(record.id, CONTENT, hashlib.sha256(CONTENT).hexdigest())
    return record


def test_the_report_comes_as_the_worker_wrote_it(gateway: RunningGateway, client: Client, job: JobRecord) -> None:
    assert client.jobs.report(job.id) == b'{"kept": []}'
    with pytest.raises(NoResultResponseError):
        client.jobs.report(gateway.add_job().id)


def test_a_submitted_file_arrives_with_its_options_and_name(
    gateway: RunningGateway, client: Client, tmp_path: Path
) -> None:
    # Given
    source = tmp_path / "my clip.mp4"
    source.write_bytes(CONTENT)
    progress: list[tuple[int, int]] = []

    # When
    job = client.jobs.create(source, lambda sent, total: progress.append((sent, total)), crf=20, codec=None)

    # Then
    assert gateway.storage.folder(job.id).source.read_bytes() == CONTENT
    assert (job.status, job.source.name, job.options.crf, job.options.codec) == ("queued", "my clip.mp4", 20, None)
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert progress == sorted(progress)
    assert client.jobs.get(job.id) == job


def test_waiting_shows_the_progress_until_the_end(gateway: RunningGateway, client: Client) -> None:
    # Given a job that moves on each time it is looked at
    job = gateway.add_job()
    steps: list[Callable[[], object]] = [
        lambda: gateway.registry.start(job.id, SOURCE_INFO),
        lambda: gateway.finish_job(job.id, b"result"),
    ]
    seen: list[JobStatus] = []

    def look(current: object) -> None:
        seen.append(client.jobs.get(job.id).status)
        if steps:
            steps.pop(0)()

    # When
    finished = client.jobs.wait(job.id, look, poll_seconds=0.01)

    # Then
    assert seen == ["queued", "running", "succeeded"]
    assert finished.status == JobStatus.SUCCEEDED


def test_a_download_is_whole_and_checked(client: Client, job: JobRecord, tmp_path: Path) -> None:
    # Given a place where something was before
    target = tmp_path / "out.mp4"
    target.write_bytes(b"before")
    progress: list[tuple[int, int]] = []

    # When
    client.jobs.download(job.id, target, lambda received, total: progress.append((received, total)))

    # Then
    assert target.read_bytes() == CONTENT
    assert [path.name for path in tmp_path.glob("out*")] == ["out.mp4"]
    assert progress[-1] == (len(CONTENT), len(CONTENT))


def test_a_download_that_breaks_off_is_continued_where_it_stopped(
    gateway: RunningGateway, job: JobRecord, tmp_path: Path
) -> None:
    # Given a line that breaks in the middle of the first transfer
    target = tmp_path / "out.mp4"
    received: list[int] = []
    with breaking_line(gateway.url, break_after_bytes=2_000_000) as (url, transfers), Client(url) as client:
        # When
        client.jobs.download(job.id, target, lambda count, total: received.append(count))

    # Then the rest came by a second transfer, which did not begin anew
    assert target.read_bytes() == CONTENT
    assert received == sorted(received)
    assert sum(transfers) < len(CONTENT) + 500_000


def test_a_later_call_continues_too(gateway: RunningGateway, client: Client, job: JobRecord, tmp_path: Path) -> None:
    # Given what an interrupted run left
    target = tmp_path / "out.mp4"
    partial = tmp_path / f"out.mp4.{hashlib.sha256(CONTENT).hexdigest()[:12]}.part"
    partial.write_bytes(CONTENT[:1_000_000])
    received: list[int] = []

    # When
    client.jobs.download(job.id, target, lambda count, total: received.append(count))

    # Then
    assert target.read_bytes() == CONTENT
    assert received[0] > 1_000_000
    assert not partial.exists()


@pytest.mark.parametrize("left_behind", [b"x" * 1000, b"x" * (len(CONTENT) + 1)])
def test_a_download_that_does_not_match_its_checksum_is_not_kept(
    client: Client, job: JobRecord, tmp_path: Path, left_behind: bytes
) -> None:
    # Given a partial file that something else wrote to
    target = tmp_path / "out.mp4"
    (tmp_path / f"out.mp4.{hashlib.sha256(CONTENT).hexdigest()[:12]}.part").write_bytes(left_behind)

    # When
    with pytest.raises(DamagedDownloadError):
        client.jobs.download(job.id, target)

    # Then nothing is there, and the next try starts afresh
    assert list(tmp_path.glob("out*")) == []
    client.jobs.download(job.id, target)
    assert target.read_bytes() == CONTENT


def test_a_job_without_a_result_says_why(gateway: RunningGateway, client: Client, tmp_path: Path) -> None:
    job = gateway.add_job()

    with pytest.raises(NoResultResponseError, match="not finished") as error:
        client.jobs.download(job.id, tmp_path / "out.mp4")

    assert error.value.problem.code == "not_finished"
    assert list(tmp_path.glob("out*")) == []


def test_a_job_is_canceled_and_what_it_had_finished_downloaded(
    gateway: RunningGateway, client: Client, tmp_path: Path
) -> None:
    # Given two jobs, one of which is canceled with the wish to keep what it had finished
    job, other = gateway.add_job(), gateway.add_job()
    canceled, plainly_canceled = client.jobs.cancel(job.id, keep_partial=True), client.jobs.cancel(other.id)
    content = b"the beginning"
    gateway.keep_partial_result(job.id, content, hashlib.sha256(content).hexdigest())

    # When
    client.jobs.download(job.id, tmp_path / "out.mp4")

    # Then
    assert (canceled.status, canceled.partial_result) == (JobStatus.CANCELED, PartialResult.BEING_MADE)
    assert plainly_canceled.partial_result is None
    assert (tmp_path / "out.mp4").read_bytes() == content


def test_listing_canceling_and_deleting(gateway: RunningGateway, client: Client) -> None:
    # Given
    first, second = gateway.add_job(), gateway.add_job()

    # When
    both = client.jobs.list(ids=[second.id, "0" * 20, first.id])
    none = client.jobs.list(ids=[])
    canceled = client.jobs.cancel(first.id)
    page = client.jobs.list(limit=1)
    rest = client.jobs.list(cursor=page.next_cursor)
    client.jobs.delete(second.id)

    # Then
    assert [job.id for job in both.jobs] == [second.id, first.id]
    assert none.jobs == []
    assert canceled.status == JobStatus.CANCELED
    assert [[job.id for job in jobs] for jobs in (page.jobs, rest.jobs)] == [[second.id], [first.id]]
    assert [job.id for job in client.jobs.list(status="canceled").jobs] == [first.id]
    assert [job.id for job in client.jobs.list().jobs] == [first.id]
    assert [model.preset for model in client.models().models] == [
        "aligned",
        "balanced",
        "compact",
        "paper",
        "paper-residual",
    ]


def test_an_estimate_is_asked_for_before_anything_is_sent(client: Client) -> None:
    estimate = client.estimate(640, 360, duration_seconds=10, frame_rate="25", quality="high")
    assert (estimate.frames, estimate.basis, estimate.seconds) == (250, "unknown", None)
    with pytest.raises(RejectedResponseError):
        client.estimate(640, 360)


def test_problems_are_typed_and_speak_the_words_of_the_service(start_gateway: StartGateway, tmp_path: Path) -> None:
    # Given
    gateway = start_gateway(api_keys="right-key", max_queued_jobs=1, max_upload_bytes=1000)
    source, large = tmp_path / "a.mp4", tmp_path / "b.mp4"
    source.write_bytes(b"abc")
    large.write_bytes(b"x" * 50_000_000)

    with Client(gateway.url, "right-key") as client, Client(gateway.url, "wrong-key") as stranger:
        # Then
        with pytest.raises(UnauthorizedResponseError, match="API key"):
            stranger.jobs.list()
        with pytest.raises(UnauthorizedResponseError, match="API key"):
            stranger.jobs.create(large)
        with pytest.raises(ProblemResponseError, match="largest accepted file has 1000 bytes") as too_large:
            client.jobs.create(large)
        with pytest.raises(ProblemResponseError, match="not one of: aligned, balanced, compact, paper"):
            client.jobs.create(source, preset="best")
        with pytest.raises(NotFoundResponseError, match="no job"):
            client.jobs.get("0" * 20)
        client.jobs.create(source)
        with pytest.raises(TryLaterResponseError, match="waiting already"):
            client.jobs.create(source)
    assert too_large.value.problem.code == "upload_too_large"


def test_a_service_that_is_not_there_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(ServiceUnreachableError) as error:
        client.jobs.list()

    assert f"no service answers at http://127.0.0.1:{port}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["ftp://host", "nonsense", "http://[", "http://host.invalid"])
def test_an_address_that_cannot_be_right_is_one_clear_line(url: str) -> None:
    with pytest.raises(ServiceUnreachableError, match="VSR_URL"), Client(url) as client:
        client.jobs.list()


@pytest.mark.parametrize("status", [200, 404, 502])
def test_another_server_is_told_from_ours(status: int) -> None:
    with page_server(status) as url, Client(url) as client, pytest.raises(ForeignResponseError):
        client.jobs.list()


def test_waiting_outlasts_a_restart_of_the_service(gateway: RunningGateway) -> None:
    # Given a service that is away for the first questions
    job = gateway.add_job()
    gateway.registry.cancel(job.id)
    with breaking_line(gateway.url, break_after_bytes=0) as (url, transfers), Client(url) as client:
        # When, Then
        assert client.jobs.wait(job.id, poll_seconds=0.01).status == JobStatus.CANCELED
    assert transfers[0] == 0


class TheProcessEnds(BaseException):
    """As Ctrl-C or a kill does, in mid-upload."""


def test_an_upload_that_a_process_did_not_finish_is_finished_by_the_next(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    # Given a process that ends in the middle
    source, remembered = tmp_path / "clip.mp4", tmp_path / "uploads"
    source.write_bytes(CONTENT)
    sent: list[int] = []

    def end_in_the_middle(sent_bytes: int, total_bytes: int) -> None:
        if sent_bytes > total_bytes / 2:
            raise TheProcessEnds

    with Client(gateway.url, uploads_dir=remembered) as client, pytest.raises(TheProcessEnds):
        client.jobs.create(source, end_in_the_middle)
    assert len(list(remembered.iterdir())) == 1

    # When
    with Client(gateway.url, uploads_dir=remembered) as client:
        job = client.jobs.create(source, lambda sent_bytes, total_bytes: sent.append(sent_bytes))

    # Then
    assert sent[0] > len(CONTENT) / 4
    assert gateway.storage.folder(job.id).source.read_bytes() == CONTENT
    assert list(remembered.iterdir()) == []


def test_a_refused_job_leaves_its_upload_for_the_next_try_and_a_refused_upload_leaves_nothing(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    # Given
    gateway = start_gateway(max_upload_bytes=1000)
    small, large, remembered = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "uploads"
    small.write_bytes(b"abc")
    large.write_bytes(b"x" * 2000)
    sent: list[int] = []
    with Client(gateway.url, uploads_dir=remembered) as client:
        # When
        with pytest.raises(RejectedResponseError, match="largest accepted"):
            client.jobs.create(large)
        after_refused_upload = list(remembered.iterdir())
        with pytest.raises(RejectedResponseError):
            client.jobs.create(small, preset="best")
        job = client.jobs.create(small, lambda sent_bytes, total_bytes: sent.append(sent_bytes))

    # Then
    assert after_refused_upload == []
    assert sent == [3]
    assert gateway.storage.folder(job.id).source.read_bytes() == b"abc"
    assert list(remembered.iterdir()) == []


def test_an_upload_that_the_service_has_forgotten_begins_anew(gateway: RunningGateway, tmp_path: Path) -> None:
    source, remembered = tmp_path / "clip.mp4", tmp_path / "uploads"
    source.write_bytes(CONTENT)
    with memory_of(remembered, gateway.url, source) as memory:
        memory.remember(new_job_id())
    with Client(f"{gateway.url}/", uploads_dir=remembered) as client:
        assert gateway.storage.folder(client.jobs.create(source).id).source.read_bytes() == CONTENT


@pytest.mark.parametrize("crf", [20, 21])
def test_a_process_that_ends_around_the_acceptance_makes_no_second_job_of_the_same_wish(
    gateway: RunningGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crf: int
) -> None:
    # Given a process that ends when the job is accepted, before it could forget the upload
    source, remembered = tmp_path / "clip.mp4", tmp_path / "uploads"
    source.write_bytes(CONTENT)
    sent: list[int] = []

    def end(memory: Memory) -> None:
        raise TheProcessEnds

    with Client(gateway.url, uploads_dir=remembered) as client:
        with monkeypatch.context() as patched:
            patched.setattr(Memory, "forget", end)
            with pytest.raises(TheProcessEnds):
                client.jobs.create(source, crf=20)

        # When the same command is given again, or one of another wish
        job = client.jobs.create(source, lambda sent_bytes, total_bytes: sent.append(sent_bytes), crf=crf)

        # Then
        jobs = client.jobs.list().jobs
    is_same = crf == 20
    assert len(jobs) == (1 if is_same else 2)
    assert bool(sent) is not is_same
    assert (job.id, job.options.crf) == (jobs[0].id, crf)
    assert list(remembered.iterdir()) == []


def test_what_is_remembered_of_an_upload_is_of_one_file_as_it_is_and_one_process_at_a_time(tmp_path: Path) -> None:
    # Given
    source, remembered = tmp_path / "clip.mp4", tmp_path / "uploads"
    source.write_bytes(b"abc")
    with memory_of(remembered, "http://service", source) as memory:
        memory.remember("first")
        # Then
        with memory_of(remembered, "http://service", source) as of_another:
            assert of_another.upload_id is None
            of_another.remember("second")
    with memory_of(remembered, "http://service", source) as memory:
        assert memory.upload_id == "first"
    with memory_of(remembered, "http://other", source) as memory:
        assert memory.upload_id is None
    source.write_bytes(b"abcd")
    with memory_of(remembered, "http://service", source) as memory:
        assert memory.upload_id is None
    with memory_of(Path("/proc/nowhere"), "http://service", source) as memory:
        memory.remember("for now")
        assert memory.upload_id == "for now"


def test_a_client_in_an_event_loop_does_the_same(gateway: RunningGateway, tmp_path: Path) -> None:
    # Given
    source, out = tmp_path / "clip.mp4", tmp_path / "out.mp4"
    source.write_bytes(CONTENT)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    told: list[str] = []

    def tell(progress: Progress) -> None:
        if progress.step == "queued" and "queued" not in told and progress.job:
            gateway.registry.start(progress.job.id, SOURCE_INFO)
        elif progress.step == "running" and "running" not in told and progress.job:
            gateway.finish_job(progress.job.id, CONTENT, sha256)
        told.append(progress.step)

    async def journey() -> None:
        async with AsyncClient(gateway.url) as client:
            # When
            job = await client.upscale(source, out, tell, quality="high")

            # Then
            assert (job.options.quality, job.options.container) == ("high", "mp4")
            assert [one.id for one in (await client.jobs.list()).jobs] == [job.id]
            assert await client.jobs.report(job.id) == b'{"kept": []}'
            assert (await client.jobs.cancel(job.id)).status is JobStatus.SUCCEEDED
            assert len((await client.models()).models) == 5
            assert [one.status async for one in client.jobs.events(job.id)] == ["succeeded"]
            await client.jobs.delete(job.id)
            with pytest.raises(NotFoundResponseError):
                await client.jobs.get(job.id)

    asyncio.run(journey())
    assert out.read_bytes() == CONTENT
    assert list(dict.fromkeys(told)) == ["uploading", "queued", "running", "downloading"]


@contextmanager
def breaking_line(url: str, break_after_bytes: int) -> Iterator[tuple[str, list[int]]]:
    """A line to the service whose first connection breaks after so many bytes; and the bytes that each one carried."""
    target = urlsplit(url)
    transfers: list[int] = []

    def carry(client: socket.socket, is_first: bool) -> None:
        service = socket.create_connection((str(target.hostname), int(target.port or 0)))
        index = len(transfers)
        transfers.append(0)
        up = threading.Thread(target=_pump, args=(client, service, None))
        up.start()

        def count(sent: int) -> bool:
            transfers[index] += sent
            return is_first and transfers[index] >= break_after_bytes

        if not (is_first and break_after_bytes == 0):
            _pump(service, client, count)
        for end in (client, service):
            _shut(end)
        up.join()
        client.close()
        service.close()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=carry, args=(client, not threads)))
                threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", transfers
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()


def _pump(source: socket.socket, sink: socket.socket, should_break: Callable[[int], bool] | None) -> None:
    try:
        while content := source.recv(65536):
            sink.sendall(content)
            if should_break and should_break(len(content)):
                return
    except OSError:
        return
    if should_break is None:
        _shut(sink)


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


@contextmanager
def page_server(status: int) -> Iterator[str]:
    """Some other web server."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
