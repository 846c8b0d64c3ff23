"""What people do with the page, from the first look to the last."""

import re
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import expect

from tests.page.conftest import OpenPage, Service, card_of, choose, start
from tests.page.front import Front


def test_a_video_goes_from_the_choice_to_the_download(
    emptied: Service, open_page: OpenPage, short_clip: Path, tmp_path: Path
) -> None:
    # Given a page that is opened for the first time
    page = open_page(emptied.url)
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(re.sub(r"^(blob:)?(\w+://[^/]*).*", r"\2", request.url)))
    expect(page.get_by_text("Nothing here yet")).to_be_visible()

    # When a video is chosen
    choose(page, short_clip)

    # Then the page says what it is and what it becomes, before a byte is sent
    row = page.locator(".chosen li")
    expect(row).to_contain_text("short.mp4")
    expect(row).to_contain_text(re.compile(r"64\s×\s48 · 0:04"))
    expect(row).to_contain_text(re.compile(r"becomes 128\s×\s96"))

    # When it is started, and waited for
    page.get_by_text("More choices").click()
    page.get_by_label("Effort of the encoder").select_option("ultrafast")
    page.get_by_label("High").check()
    page.get_by_role("button", name="Start").click()
    card = card_of(page, short_clip)
    expect(card).to_contain_text("Done today")

    # Then what was asked for was sent, and the result is what the service has
    [job] = httpx2.get(f"{emptied.url}/v1/jobs").json()["jobs"]
    assert (job["options"]["encoder_preset"], job["options"]["quality"]) == ("ultrafast", "high")
    with page.expect_download() as download:
        card.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "short_2x.mp4"
    download.value.save_as(tmp_path / "result.mp4")
    assert (tmp_path / "result.mp4").read_bytes() == httpx2.get(emptied.url + job["links"]["result"]).content

    # When the page is opened again
    page.reload()

    # Then the video is still there, and its report can be read
    card.get_by_role("button", name="What was kept").click()
    expect(card).to_contain_text("All 24 frames are there, each at its very own time.")
    expect(card.get_by_role("row", name=re.compile("Frame size"))).to_contain_text("128 × 96")

    # When it is deleted, after a question
    card.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()

    # Then it is gone, here and there, and no other host was ever asked for anything
    expect(card).to_have_count(0)
    assert httpx2.get(f"{emptied.url}/v1/jobs").json()["jobs"] == []
    assert hosts == {emptied.url}


def test_several_videos_are_dropped_wait_their_turn_and_all_come_back(
    emptied: Service, open_page: OpenPage, short_clip: Path, heavy_clip: Path
) -> None:
    # Given
    page = open_page(emptied.url)

    # When two files are dropped onto the page, as a browser does it
    contents = {path.name: list(path.read_bytes()[:300_000]) for path in (short_clip, heavy_clip)}
    page.evaluate(
        """(contents) => {
          const dataTransfer = new DataTransfer();
          for (const [name, bytes] of Object.entries(contents)) {
            dataTransfer.items.add(new File([new Uint8Array(bytes)], name));
          }
          for (const type of ["dragover", "drop"]) {
            document.body.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
          }
        }""",
        contents,
    )
    page.get_by_role("button", name="Start 2 videos").click()

    # Then
    expect(card_of(page, short_clip)).to_contain_text("Done today")
    expect(card_of(page, heavy_clip)).to_contain_text("Done today")


def test_progress_is_shown_as_it_happens_and_a_stopped_video_keeps_what_is_done(
    emptied: Service, open_page: OpenPage, long_clip: Path, short_clip: Path
) -> None:
    # Given a long video under way, and a short one behind it
    page = open_page(emptied.url)
    start(page, long_clip, short_clip)
    card = card_of(page, long_clip)

    # Then its figures move: frames, speed, time left, segments
    figures = card.locator(".figures")
    words = re.compile(
        r"[1-9]\d* of 240 frames · .* frames? a (second|minute) · about .* left · [1-9]\d* of 10 segments"
    )
    expect(figures).to_have_text(words)
    first = figures.inner_text()
    expect(figures).not_to_have_text(first)

    # When it is stopped
    card.get_by_role("button", name="Stop").click()
    page.get_by_role("dialog").get_by_role("button", name="keep the part that is done").click()

    # Then what was finished is a video of its own, and the short one is not disturbed
    expect(card).to_contain_text("the finished part is kept")
    expect(card.get_by_role("link", name="Download")).to_be_visible()
    expect(card_of(page, short_clip)).to_contain_text("Done today")


def test_a_broken_file_is_told_what_is_wrong_and_what_to_do(
    emptied: Service, open_page: OpenPage, tmp_path: Path
) -> None:
    # Given a text that is called a video
    broken = tmp_path / "holiday.mp4"
    broken.write_bytes(b"this is no video at all" * 1000)
    page = open_page(emptied.url)

    # When it is sent
    start(page, broken)

    # Then
    card = card_of(page, broken)
    expect(card).to_contain_text("Could not be finished")
    expect(card.locator(".todo")).to_contain_text("convert it")
    expect(card.get_by_role("button", name="Try again")).to_be_visible()


def test_an_empty_file_is_told_before_it_is_sent(emptied: Service, open_page: OpenPage, tmp_path: Path) -> None:
    # Given
    (tmp_path / "empty.mp4").touch()
    page = open_page(emptied.url)

    # When
    choose(page, tmp_path / "empty.mp4")
    expect(page.locator(".chosen li")).to_contain_text("The file is empty")
    page.get_by_role("button", name="Start").click()

    # Then it stays on this side
    expect(page.locator(".upload .todo")).to_contain_text("Export or copy the file again")
    assert httpx2.get(f"{emptied.url}/v1/jobs").json()["jobs"] == []


def test_a_lost_connection_in_mid_upload_loses_nothing(front: Front, open_page: OpenPage, heavy_clip: Path) -> None:
    # Given an upload under way, behind a proxy with a prefix
    front.upload_bytes_per_second = 1_500_000
    page = open_page(front.url)
    start(page, heavy_clip)
    card = card_of(page, heavy_clip)
    expect(card.locator(".figures")).to_contain_text("left")

    # When the connection is cut
    front.cut()

    # Then the page says so, and what has arrived is safe
    expect(card).to_contain_text("It goes on by itself")

    # When it is back
    front.upload_bytes_per_second = None
    front.mend()

    # Then the upload goes on from where it was, and becomes the job of the very same bytes
    expect(card).to_contain_text("Done today")
    assert len([line for line in front.requests if line.startswith("POST") and "/v1/uploads" in line]) == 1
    assert [line for line in front.requests if line.startswith("HEAD") and "/v1/uploads/" in line]
    [job] = httpx2.get(f"{front.url}v1/jobs").json()["jobs"]
    assert job["source"]["size_bytes"] == heavy_clip.stat().st_size


def test_a_page_closed_in_mid_upload_goes_on_from_there(front: Front, open_page: OpenPage, heavy_clip: Path) -> None:
    # Given an upload that a closed page has left in the middle
    front.upload_bytes_per_second = 1_500_000
    page = open_page(front.url)
    page.on("dialog", lambda dialog: dialog.accept())
    start(page, heavy_clip)
    expect(card_of(page, heavy_clip).locator(".figures")).to_contain_text("left")

    # When the page is opened again
    page.reload()

    # Then it says what is left over, and the same file goes on
    expect(page.locator(".left-over")).to_contain_text("heavy.mp4 was not sent to its end")
    front.upload_bytes_per_second = None
    start(page, heavy_clip)
    expect(card_of(page, heavy_clip)).to_contain_text("Done today")
    assert len([line for line in front.requests if line.startswith("POST") and "/v1/uploads" in line]) == 1
    expect(page.locator(".left-over li")).to_have_count(0)


def test_a_worker_killed_in_the_middle_is_not_even_noticed(
    emptied: Service, open_page: OpenPage, long_clip: Path
) -> None:
    # Given a video under way
    page = open_page(emptied.url)
    start(page, long_clip)
    card = card_of(page, long_clip)
    expect(card.locator(".figures")).to_have_text(re.compile(r"[1-9]\d* of 10 segments"))

    # When the process that renders it dies
    emptied.kill_worker()

    # Then it is finished all the same
    expect(card).to_contain_text("Done today")


def test_whoever_has_no_key_is_asked_for_it_once(
    service_with_key: Service, open_page: OpenPage, short_clip: Path
) -> None:
    # Given a service with keys
    page = open_page(service_with_key.url)
    field = page.get_by_role("textbox", name="Key")

    # When a wrong key is given
    field.fill("not-the-key")
    page.get_by_role("button", name="Sign in").click()

    # Then the page says what to do
    expect(page.get_by_role("alert")).to_contain_text("not known here")

    # When the right one is
    field.fill("a-key-for-the-page-only")
    page.get_by_role("button", name="Sign in").click()

    # Then all works: uploads, events, downloads, also after the page is opened again
    start(page, short_clip)
    card = card_of(page, short_clip)
    expect(card).to_contain_text("Done today")
    page.reload()
    with page.expect_download():
        card.get_by_role("link", name="Download").click()
    assert "a-key-for-the-page-only" not in page.evaluate("JSON.stringify(localStorage) + document.cookie")

    # When one signs out
    page.get_by_role("button", name="Sign out").click()

    # Then the door is closed
    expect(field).to_be_visible()
    expect(card).to_have_count(0)


def test_the_service_being_away_is_said_and_passes(front: Front, open_page: OpenPage, long_clip: Path) -> None:
    # Given a video under way
    page = open_page(front.url)
    start(page, long_clip)
    card = card_of(page, long_clip)
    expect(card.locator(".figures")).to_contain_text("of 10 segments")

    # When the service cannot be reached
    front.cut()

    # Then
    expect(page.locator("#banner")).to_contain_text("this page tries again by itself")

    # And when it can
    front.mend()
    expect(page.locator("#banner")).to_be_hidden()
    expect(card).to_contain_text("Done today")


@pytest.mark.parametrize("codec", ["hevc", "ffv1"])
def test_what_no_browser_plays_is_compared_in_single_pictures(
    emptied: Service, open_page: OpenPage, short_clip: Path, codec: str
) -> None:
    # Given a result in a codec that this browser does not play
    page = open_page(emptied.url)
    choose(page, short_clip)
    page.get_by_label("Format").select_option(codec)
    page.get_by_role("button", name="Start").click()
    card = card_of(page, short_clip)
    expect(card).to_contain_text("Done today")

    # When it is compared
    card.get_by_role("button", name="Compare").click()

    # Then there are two pictures of one moment
    expect(card.locator(".said")).to_contain_text("single pictures")
    expect(card.locator(".layer img")).to_have_count(2)
