"""The commands that talk to a service: what they send, and what they show of a report."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from app.cli import cli
from app.cli_options import container_for
from app.exit_codes import ExitCode, exit_code_of
from tests.app.conftest import RunningGateway, StartGateway
from tests.app.test_report_page import report_of
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container, now
from worker.contract.presets import LoadedModel, announce_loaded

LOADED = LoadedModel(preset="aligned", scale=2, description="", device="cpu", loaded_at=now(), network="2:weights")


def vsr(*arguments: str | Path) -> str:
    """Run a command that must succeed, and return what it prints for programs or people."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == ExitCode.OK, done.output
    return done.stdout


@pytest.mark.parametrize("words", [["--help"], ["submit", "--help"], ["status", "--help"], ["--version"]])
def test_a_small_command_waits_for_no_large_library(words: list[str]) -> None:
    code = (
        "import sys; from app.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'av', 'fastapi', 'httpx2', 'numpy', 'torch', 'uvicorn'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)

    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]"), done.stderr


def test_the_client_needs_neither_the_web_framework_nor_the_networks() -> None:
    code = "import sys, app.client; print(sorted({'av', 'fastapi', 'numpy', 'torch', 'uvicorn'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def all_commands() -> list[list[str]]:
    """The words of every command that does something."""
    group = typer.main.get_command(cli)
    commands: dict[str, object] = group.commands  # type: ignore[attr-defined]
    return [
        [name, *([inner] if inner else [])]
        for name, command in commands.items()
        for inner in getattr(command, "commands", {"": None})
    ]


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_the_help_of_every_command_ends_with_an_example_to_copy(words: list[str]) -> None:
    done = CliRunner().invoke(cli, [*words, "--help"])
    assert done.exit_code == ExitCode.OK
    assert "vsr " + " ".join(words) in " ".join(done.output.partition("Example")[2].split())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["uplod"], "No such command 'uplod'. See: "),
        (["submit"], "Missing argument 'FILE|URL'. See: "),
        (["status", "--bogus"], "No such option: --bogus"),
        (["serve", "--port", "high"], "Invalid value for '--port'"),
        (["weights", "nope"], "No such command 'nope'"),
    ],
)
def test_wrong_usage_is_one_line_with_its_exit_code(words: list[str], why: str) -> None:
    done = subprocess.run([sys.executable, "-m", "app.cli", *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert done.stderr.count("\n") == 1
    assert why in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_can_complete_commands(shell: str) -> None:
    # Given
    command = Path(sys.executable).with_name("vsr")
    asking = {"_TYPER_COMPLETE_ARGS": "vsr st", "COMP_WORDS": "vsr st", "COMP_CWORD": "1"}

    # When
    script = subprocess.run([command, "--show-completion", shell], capture_output=True, text=True, check=True).stdout
    completed = subprocess.run(
        [command], env=os.environ | asking | {"_VSR_COMPLETE": f"complete_{shell}"}, capture_output=True, text=True
    ).stdout

    # Then
    assert "_vsr_completion" in script
    assert "status" in completed
    if parser := shutil.which(shell):
        assert subprocess.run([parser, "-n"], input=script, text=True, check=False).returncode == 0


def test_a_job_is_deleted_by_its_id(gateway: RunningGateway) -> None:
    first, second = gateway.add_job(), gateway.add_job()
    assert vsr("delete", first.id, "--url", gateway.url) == f"{first.id}\n"
    assert json.loads(vsr("delete", second.id, "--json", "--url", gateway.url)) == {"id": second.id, "deleted": True}
    assert json.loads(vsr("list", "--json", "--url", gateway.url))["jobs"] == []


def test_every_option_of_a_job_can_be_submitted(gateway: RunningGateway, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"abc")
    chosen = {
        "container": "webm",
        "codec": "vp9",
        "quality": "high",
        "encoder_preset": "fast",
        "encoder_options": "tile-columns=1",
        "deinterlace": "never",
        "on_error": "conceal",
        "frame_rate": "24000/1001",
    }
    words = [word for name, value in chosen.items() for word in (f"--{name.replace('_', '-')}", value)]

    job = json.loads(vsr("submit", clip, "--json", "--url", gateway.url, "--drop-unsupported", "--reuse", *words))

    assert job["options"] | chosen == job["options"]
    assert (job["options"]["drop_unsupported"], job["options"]["reuse"]) == (True, True)


def test_options_that_nobody_said_are_left_to_the_service(gateway: RunningGateway, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"abc")
    job = json.loads(vsr("submit", clip, "--json", "--url", gateway.url))
    assert (job["options"]["quality"], job["options"]["on_error"]) == (None, "fail")


def test_a_url_is_submitted_for_the_service_to_fetch_and_a_receiver_named(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    # Given
    gateway = start_gateway(allow_source_url=True, webhook_secret="a secret of more than twenty-four letters")
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"abc")
    receiver = ("--webhook-url", "https://hooks.example.com/vsr?token=hidden")

    # When
    fetched = json.loads(vsr("submit", "https://media.example.com/film.mov", "--json", "--url", gateway.url))
    told = json.loads(vsr("submit", clip, *receiver, "--json", "--url", gateway.url))

    # Then
    assert (fetched["source"]["name"], fetched["source"]["url"]) == ("film.mov", "https://media.example.com/film.mov")
    assert told["links"]["webhook"] == f"/v1/jobs/{told['id']}/webhook"


def test_a_result_that_is_there_already_can_be_taken(gateway: RunningGateway, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"abc")
    words = ("submit", clip, "--reuse-result", "--json", "--url", gateway.url)
    first = json.loads(vsr(*words))
    gateway.finish_job(first["id"], b"result")
    report = report_of(losses=()).model_copy(update={"network": "2:weights"})
    gateway.storage.folder(first["id"]).report.write_text(report.model_dump_json())
    announce_loaded(gateway.redis, LOADED, ttl_seconds=60)

    again = json.loads(vsr(*words))

    assert (again["id"], again["status"], again["result_is_reused"]) == (first["id"], "succeeded", True)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["no-such-clip.mp4"], "there is no such file"),
        (["https://a.example.com/b.mp4", "--reuse-result"], "no bytes of a"),
    ],
)
def test_what_cannot_be_submitted_is_refused_before_the_service_is_asked(words: list[str], why: str) -> None:
    done = CliRunner().invoke(cli, ["submit", *words])
    assert done.exit_code == ExitCode.USAGE
    assert why in done.output


def test_the_report_of_a_job_is_shown_as_a_page_or_as_it_is(gateway: RunningGateway) -> None:
    job = gateway.add_job()
    gateway.finish_job(job.id, b"result")
    content = report_of(losses=("a subtitle",)).model_dump_json()
    gateway.storage.folder(job.id).report.write_text(content)

    assert "lost, as agreed: a subtitle" in vsr("report", job.id, "--url", gateway.url)
    assert vsr("report", job.id, "--url", gateway.url, "--json") == content


@pytest.mark.parametrize(
    ("output", "chosen", "container"),
    [
        (None, None, None),
        (Path("film.mkv"), None, Container.MKV),
        (Path("film.MOV"), Container.MOV, Container.MOV),
        (Path("film"), Container.WEBM, Container.WEBM),
        (Path("film.avi"), None, None),
    ],
)
def test_the_container_is_said_by_name_or_by_option(
    output: Path | None, chosen: Container | None, container: Container | None
) -> None:
    assert container_for(output, chosen) is container


def test_a_name_and_an_option_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(typer.BadParameter, match="leave one out"):
        container_for(Path("film.mkv"), Container.MP4)


def test_a_result_that_would_lose_something_has_the_exit_code_of_the_impossible() -> None:
    assert exit_code_of(FailureCode.WOULD_LOSE) is ExitCode.NOT_POSSIBLE


@pytest.mark.parametrize("place", ["missing/clip.json", "."])
@pytest.mark.parametrize(
    "command", [("upscale", "clip.mp4"), ("submit", "clip.mp4"), ("submit", "clip.mp4", "-o", "a.mp4")]
)
def test_a_report_that_could_not_be_written_is_refused_before_any_work(
    command: tuple[str, ...], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"abc")
    done = CliRunner().invoke(cli, [*command, "--report", place])
    assert isinstance(done.exception, IsADirectoryError if place == "." else FileNotFoundError)
    assert done.exception.filename == place


@pytest.mark.parametrize("command", [("upscale", "clip.mp4"), ("submit", "clip.mp4"), ("demo", "clip.mp4")])
def test_a_folder_that_may_not_be_written_is_refused_before_any_work(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"abc")
    # nobody's, not even root's
    place = ["-o" if command[0] == "demo" else "--report", "/proc/self/clip.mp4"]
    done = CliRunner().invoke(cli, [*command, *place])
    assert isinstance(done.exception, PermissionError)
    assert done.exception.filename == "/proc/self/clip.mp4"


@pytest.mark.parametrize("command", ["demo", "submit"])
def test_a_file_that_is_there_is_not_replaced_unasked(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clip.mp4", "clip_2x.mp4"):
        (tmp_path / name).write_bytes(b"abc")
    of_another = CliRunner().invoke(cli, [command, "clip.mp4", "-o", "clip_2x.mp4"])
    of_its_own = CliRunner().invoke(cli, [command, "clip.mp4", "-o", "clip.mp4", "--overwrite"])
    for done in (of_another, of_its_own):
        assert isinstance(done.exception, JobFailureError)
        assert exit_code_of(done.exception.code) is ExitCode.NOT_POSSIBLE
    assert "--overwrite" in str(of_another.exception)
    assert (tmp_path / "clip_2x.mp4").read_bytes() == b"abc"


def test_a_job_that_waits_says_where_in_the_queue_and_counts_nothing(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = gateway.add_job()
    said: list[str] = []

    def hear_and_cancel(note: str) -> None:
        said.append(note)
        gateway.registry.cancel(job.id)

    monkeypatch.setattr("app.terminal.print_note", hear_and_cancel)
    CliRunner().invoke(cli, ["wait", job.id, "--url", gateway.url])
    assert said == ["waiting, number 1 in the queue"]


def test_what_is_no_report_and_no_job_is_refused_by_name(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["report", str(tmp_path / "none.json")])
    assert isinstance(done.exception, JobFailureError)
    assert "neither a file nor the id of a job" in done.exception.message
    assert exit_code_of(done.exception.code) is ExitCode.NOT_POSSIBLE


def test_a_result_is_downloaded_once_and_replaces_another_file_only_when_told_to(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    # Given a finished job, and another file of the result's name
    content = b"the result"
    job = gateway.add_job()
    gateway.finish_job(job.id, content, hashlib.sha256(content).hexdigest())
    out = tmp_path / "out.mp4"
    out.write_bytes(b"of another")
    words = ["download", job.id, "-o", str(out), "--url", gateway.url]

    # When it is downloaded, then that file stays
    refused = CliRunner().invoke(cli, words)
    assert isinstance(refused.exception, JobFailureError)
    assert refused.exception.code is FailureCode.OUTPUT_EXISTS
    assert out.read_bytes() == b"of another"

    # When it may go, then it goes
    assert vsr(*words, "--overwrite") == f"{out}\n"
    assert out.read_bytes() == content

    # And the result itself is in nobody's way
    written_at = out.stat().st_mtime_ns
    assert vsr(*words) == f"{out}\n"
    assert out.stat().st_mtime_ns == written_at
