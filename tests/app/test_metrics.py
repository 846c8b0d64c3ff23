"""The gateway's metrics: names that dashboards rely on, at zero from the start, read without side effects."""

from datetime import timedelta
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from rq.utils import utcformat

from app.embedded_redis import EmbeddedRedis
from app.metrics import JANITOR_OUTCOMES, REJECTION_REASONS, REMOVED_KINDS
from tests.app.conftest import SOURCE_INFO, RunningGateway, StartGateway
from tests.app.test_health import register_worker
from worker.contract.job import now
from worker.contract.queue import TaskQueue


def scrape(gateway: RunningGateway, **headers: str) -> dict[str, float]:
    """Samples by name and labels, as Prometheus writes them: `vsr_jobs{status="queued"}`."""
    answer = gateway.http.get("/metrics", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    samples = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            samples[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return samples


def test_every_known_label_is_there_at_zero_from_the_start(gateway: RunningGateway) -> None:
    samples = scrape(gateway)

    expected = ["vsr_upload_bytes_total", "vsr_jobs_submitted_total", "vsr_queue_oldest_age_seconds"]
    expected += [f'vsr_jobs_rejected_total{{reason="{reason}"}}' for reason in REJECTION_REASONS]
    expected += [
        f'vsr_jobs{{status="{status}"}}' for status in ("queued", "running", "succeeded", "failed", "canceled")
    ]
    expected += [f'vsr_queue_tasks{{kind="{kind}"}}' for kind in ("plan", "segment", "assemble")]
    expected += ["vsr_uploads"]
    expected += [f'vsr_janitor_rounds_total{{outcome="{outcome}"}}' for outcome in JANITOR_OUTCOMES]
    expected += [f'vsr_janitor_removed_total{{kind="{kind}"}}' for kind in REMOVED_KINDS]
    expected += [f'vsr_workers{{state="{state}"}}' for state in ("idle", "busy")]
    assert {name: samples[name] for name in expected} == dict.fromkeys(expected, 0.0)
    assert samples["vsr_redis_up"] == 1
    assert samples["vsr_storage_free_bytes"] > 0
    assert [name for name in samples if name.startswith("vsr_build_info")]
    assert samples["process_resident_memory_bytes"] > 0


def test_redis_tells_its_memory_its_clients_and_whether_it_keeps_what_it_is_told(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    # Given a Redis with a limit
    with EmbeddedRedis(tmp_path / "own-redis") as server, Redis.from_url(server.url) as own:
        own.config_set("maxmemory", 2**30)
        gateway = start_gateway(redis_url=server.url)
        kept = scrape(gateway)

        # When it no longer writes its file
        own.config_set("appendonly", "no")
        forgetful = scrape(gateway)

    # Then
    assert 0 < kept['vsr_redis_memory_bytes{kind="used"}'] < kept['vsr_redis_memory_bytes{kind="limit"}'] == 2**30
    assert kept["vsr_redis_clients"] >= 2
    assert (kept["vsr_redis_append_only_ok"], forgetful["vsr_redis_append_only_ok"]) == (1, 0)


def test_the_worker_that_was_heard_of_least_recently_tells_the_silence(gateway: RunningGateway, redis: Redis) -> None:
    # Given a worker that beats and one that does not, and what is left of one that is forgotten
    before = scrape(gateway)["vsr_worker_silence_seconds"]
    for name, silent_seconds in (("loud", 1), ("quiet", 60)):
        register_worker(redis, name, "busy")
        redis.hset(f"rq:worker:{name}", "last_heartbeat", utcformat(now() - timedelta(seconds=silent_seconds)))
    redis.sadd("rq:workers:vsr", "rq:worker:forgotten")

    # When
    silence = scrape(gateway)["vsr_worker_silence_seconds"]

    # Then
    assert before == 0
    assert 60 <= silence < 90


def test_jobs_tasks_and_workers_are_counted_where_they_are(gateway: RunningGateway, redis: Redis) -> None:
    # Given a submitted job, a running one with two segments waiting, a canceled one; two workers
    gateway.http.post("/v1/jobs", files={"file": ("clip.mp4", b"abcde")})
    running, canceled = gateway.add_job(), gateway.add_job()
    gateway.registry.start(running.id, SOURCE_INFO)
    TaskQueue(redis).enqueue_first_segments(running.id, 2, 2)
    gateway.registry.cancel(canceled.id)
    register_worker(redis, "a", "busy")
    register_worker(redis, "b", "idle")

    # When
    samples = scrape(gateway)

    # Then
    assert samples['vsr_jobs{status="queued"}'] == 1
    assert samples['vsr_jobs{status="running"}'] == 1
    assert samples['vsr_jobs{status="canceled"}'] == 1
    assert samples['vsr_queue_tasks{kind="plan"}'] == 1
    assert samples['vsr_queue_tasks{kind="segment"}'] == 2
    assert samples["vsr_queue_oldest_age_seconds"] > 0
    assert samples['vsr_workers{state="busy"}'] == 1
    assert samples['vsr_workers{state="idle"}'] == 1
    assert samples["vsr_jobs_submitted_total"] == 1
    assert samples["vsr_upload_bytes_total"] == 5


def test_refusals_are_counted_by_reason(start_gateway: StartGateway) -> None:
    # Given
    gateway = start_gateway(api_keys="key", max_upload_bytes=10)
    key = {"X-API-Key": "key"}

    # When
    gateway.http.post("/v1/jobs")
    gateway.http.put("/v1/uploads/a", content=b"x")
    gateway.http.put("/v1/uploads/a", content=b"x" * 11, headers=key)
    gateway.http.put("/v1/uploads/a.b", content=b"x", headers=key)
    gateway.http.post("/v1/jobs", files={"file": ("a", b"")}, headers=key)
    gateway.http.get("/v1/jobs")
    samples = scrape(gateway, **key)

    # Then those that did not submit anything are not among them
    counted = {name: value for name, value in samples.items() if name.startswith("vsr_jobs_rejected_total") and value}
    assert counted == {
        'vsr_jobs_rejected_total{reason="unauthorized"}': 2,
        'vsr_jobs_rejected_total{reason="upload_too_large"}': 1,
        'vsr_jobs_rejected_total{reason="invalid_request"}': 1,
        'vsr_jobs_rejected_total{reason="empty_file"}': 1,
    }


def test_a_canceled_job_is_counted_once(gateway: RunningGateway) -> None:
    # Given two jobs, and a counter that is there before the first is canceled
    canceled, deleted = gateway.add_job(), gateway.add_job()
    name = 'vsr_jobs_finished_total{reason="",status="canceled"}'
    before = scrape(gateway)[name]

    # When one is canceled and then deleted, the other deleted at once
    gateway.http.post(f"/v1/jobs/{canceled.id}/cancel")
    for job in (canceled, deleted):
        gateway.http.delete(f"/v1/jobs/{job.id}")

    # Then
    assert (before, scrape(gateway)[name]) == (0, 2)


def test_requests_are_counted_by_route_and_never_by_job(gateway: RunningGateway) -> None:
    job = gateway.add_job()
    gateway.http.get(f"/v1/jobs/{job.id}")

    text = gateway.http.get("/metrics").text

    assert 'handler="/v1/jobs/{job_id}"' in text
    assert job.id not in text


def test_a_scrape_without_redis_still_answers(start_gateway: StartGateway, tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "own-redis") as server:
        gateway = start_gateway(redis_url=server.url)

    samples = scrape(gateway)

    assert samples["vsr_redis_up"] == 0
    assert samples["vsr_jobs_submitted_total"] == 0
    assert not [name for name in samples if name.startswith("vsr_jobs{")]
