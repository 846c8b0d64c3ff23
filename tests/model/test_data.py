"""Data sets: split by source, shrunk right, read where they lie, checked when read, and never half finished."""

import hashlib
import json
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from model.data import (
    Dataset,
    DatasetError,
    DatasetWriter,
    DecodedSequence,
    SequenceEntry,
    Skipped,
    pack,
    shrink,
    split_by_source,
    write_dataset,
)


def entry(source: str, split: str = "") -> SequenceEntry:
    return SequenceEntry("name", "shard", 0, 0, split, source, "CC0", 25, 64, 64, "")


def sequence(name: str, *, side: int = 16, split: str | None = None) -> DecodedSequence:
    """Five frames of noise, another for each name, with one condition beside the clean one."""
    generator = torch.Generator().manual_seed(int(hashlib.md5(name.encode()).hexdigest()[:8], 16))
    hr = torch.randint(256, (5, 3, side, side), generator=generator, dtype=torch.uint8)
    dark = {"dark": shrink(hr) // 2}
    return DecodedSequence(name, name, "CC0", split, hr, dark, {"dark": "by half"})


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_source_lies_in_one_split_and_eight_of_ten_train() -> None:
    entries = [entry(f"video-{n % 20}") for n in range(100)]

    divided = split_by_source(entries, seed=0)

    splits_of = {source: {e.split for e in divided if e.source == source} for source in {e.source for e in divided}}
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert [sum(splits == {name} for splits in splits_of.values()) for name in ("train", "val", "test")] == [16, 2, 2]


@pytest.mark.parametrize(
    ("sources", "counts"), [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (7, (5, 1, 1)), (10, (8, 1, 1))]
)
def test_few_sources_still_leave_something_to_validate_on(sources: int, counts: tuple[int, int, int]) -> None:
    divided = split_by_source([entry(f"video-{n}") for n in range(sources)], seed=0)

    assert tuple(sum(e.split == name for e in divided) for name in ("train", "val", "test")) == counts


def test_the_split_depends_on_the_seed_alone() -> None:
    entries = [entry(f"video-{n}") for n in range(30)]

    assert split_by_source(entries, seed=1) == split_by_source(entries, seed=1)
    assert split_by_source(entries, seed=1) != split_by_source(entries, seed=2)


def test_a_split_that_the_material_names_is_kept_and_holds_for_the_rest_of_the_source() -> None:
    entries = [entry("a", "val"), entry("b", "train"), entry("a")]

    assert [e.split for e in split_by_source(entries, seed=0)] == ["val", "train", "val"]


def test_shrinking_keeps_constant_colours_and_has_no_overshoot_beyond_eight_bits() -> None:
    flat, edge = torch.full((1, 3, 16, 16), 77, dtype=torch.uint8), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    edge[..., 8:] = 255

    assert torch.equal(shrink(flat), torch.full((1, 3, 8, 8), 77, dtype=torch.uint8))
    assert set(shrink(edge)[0, 0, 0].tolist()) >= {0, 255}


def test_shrinking_is_antialiased() -> None:
    # given stripes too fine for half the size
    stripes = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    stripes[..., ::2] = 200

    # then they become their mean, not stripes of another width
    assert float((shrink(stripes)[..., 4:-4].float() - 100).abs().max()) <= 1


def test_a_data_set_is_read_back_as_written(tmp_path: Path) -> None:
    written = [sequence(name) for name in "abc"]

    data = write_dataset(written, tmp_path, seed=7)

    assert (data.location, data.scale, data.seed, data.conditions) == (str(tmp_path), 2, 7, ("clean", "dark"))
    for one, found in zip(written, data.entries, strict=True):
        tensors = data.read(found)
        assert (found.name, found.frames, found.height, found.width) == (one.name, 5, 16, 16)
        assert found.degradations == {"dark": "by half"}
        assert list(tensors) == ["clean", "dark", "hr"]
        assert torch.equal(tensors["hr"], one.hr)
        assert torch.equal(tensors["clean"], shrink(one.hr))
        assert torch.equal(tensors["dark"], one.degraded["dark"])


def test_the_shards_are_plain_tar_files_of_plain_safetensors_files(tmp_path: Path) -> None:
    # given shards with room for two sequences each
    data = write_dataset_in_shards(tmp_path / "data", "abcde", shard_bytes=15_000)

    # then other programs read the same from them as we do, at the places that the manifest names
    shards = sorted((tmp_path / "data" / "shards").iterdir())
    assert [shard.name for shard in shards] == ["00000.tar", "00001.tar", "00002.tar"]
    names = subprocess.run(["tar", "-tf", str(shards[0])], capture_output=True, text=True, check=True).stdout.split()
    assert names == ["00000000.safetensors", "00000001.safetensors"]
    members = {(f"shards/{shard.name}", info.offset_data): content for shard in shards for info, content in tar(shard)}
    for found in data.entries:
        content = members.pop((found.shard, found.offset_bytes))
        assert len(content) == found.size_bytes
        for name, tensor in safetensors.torch.load(content).items():
            assert torch.equal(tensor, data.read(found)[name])
    assert not members


def tar(shard: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(shard) as archive:
        for info in archive:
            member = archive.extractfile(info)
            assert member is not None
            yield info, member.read()


def write_dataset_in_shards(folder: Path, names: str, shard_bytes: int) -> Dataset:
    with DatasetWriter(folder, seed=0, conditions=["dark"], shard_bytes=shard_bytes) as writer:
        for name in names:
            writer.commit([pack(sequence(name))])
        return writer.finish()


@pytest.mark.parametrize("killed_after", [0, 1, 2, 3, 4])
def test_a_writer_killed_and_made_anew_ends_with_the_same_bytes(tmp_path: Path, killed_after: int) -> None:
    # given a data set written in one go
    undisturbed = DatasetWriter(tmp_path / "undisturbed", seed=0, conditions=["dark"], shard_bytes=15_000)
    for name in "abcd":
        undisturbed.commit([pack(sequence(name))], [Skipped(f"before {name}", "not needed")])
    undisturbed.finish()

    # when another is killed behind a commit, in the middle of writing more to shard and journal
    folder = tmp_path / "killed"
    with DatasetWriter(folder, seed=0, conditions=["dark"], shard_bytes=15_000) as killed:
        for name in "abcd"[:killed_after]:
            killed.commit([pack(sequence(name))], [Skipped(f"before {name}", "not needed")])
        killed._append(pack(sequence("lost")), number=99)
        killed._append(pack(sequence("lost too")), number=100)
    with (folder / "unfinished.jsonl").open("a") as journal:
        journal.write('{"entries": [{"name": "lo')
    # and in a folder that somebody has looked into
    for foreign in (folder, tmp_path / "undisturbed"):
        (foreign / "shards" / ".DS_Store").write_text("not ours")

    # then a new one knows what is done, and ends with the same files
    resumed = DatasetWriter(folder, seed=0, conditions=["dark"], shard_bytes=15_000)
    assert resumed.commits == killed_after
    assert not (folder / "manifest.json").exists()
    for name in "abcd"[resumed.commits :]:
        resumed.commit([pack(sequence(name))], [Skipped(f"before {name}", "not needed")])
    resumed.finish()
    assert files_in(folder) == files_in(tmp_path / "undisturbed")


def test_an_unfinished_data_set_of_another_recipe_is_not_gone_on_with(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, seed=0, recipe={"size": 128}) as writer:
        writer.commit([pack(replace(sequence("a"), degraded={}))])

    with pytest.raises(DatasetError, match=r"unfinished data set made otherwise \(seed, size\)"):
        DatasetWriter(tmp_path, seed=1, recipe={"size": 256})


def test_two_writers_do_not_write_into_one_folder(tmp_path: Path) -> None:
    # given a writer at work
    with DatasetWriter(tmp_path, seed=0, conditions=["dark"]) as first:
        first.commit([pack(sequence("a"))])

        # when the same command is given once more
        with pytest.raises(DatasetError, match="another process writes into"):
            DatasetWriter(tmp_path, seed=0, conditions=["dark"])

        # then the first one is not disturbed, and leaves nothing but its data
        first.commit([pack(sequence("b"))])
        data = first.finish()
    assert [torch.equal(data.read(entry)["hr"], sequence(entry.name).hr) for entry in data.entries] == [True, True]
    assert sorted(files_in(tmp_path)) == ["manifest.json", "shards/00000.tar"]


def test_a_finished_data_set_is_not_written_over(tmp_path: Path) -> None:
    write_dataset([sequence("a")], tmp_path, seed=0)

    with pytest.raises(DatasetError, match="holds a data set already"):
        DatasetWriter(tmp_path, seed=0)


def test_other_peoples_shards_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "precious.tar").write_text("not ours")

    with pytest.raises(DatasetError, match="choose another folder"):
        DatasetWriter(tmp_path, seed=0)
    assert (tmp_path / "shards" / "precious.tar").exists()


def test_a_damaged_shard_is_refused_when_its_sequence_is_first_read(tmp_path: Path) -> None:
    # given one wrong bit in the second sequence
    data = write_dataset([sequence(name) for name in "ab"], tmp_path, seed=0)
    shard = tmp_path / "shards" / "00000.tar"
    content = bytearray(shard.read_bytes())
    content[data.entries[1].offset_bytes + 5000] ^= 1
    shard.write_bytes(content)

    # then it is named, and the first is read
    opened = Dataset.open(tmp_path)
    opened.read(opened.entries[0])
    with pytest.raises(DatasetError, match=r"00000\.tar is damaged: the sha256 of b is not the manifest's"):
        opened.read(opened.entries[1])


@pytest.mark.parametrize("kept", [0, 3000])
def test_a_shard_cut_off_is_refused(tmp_path: Path, kept: int) -> None:
    data = write_dataset([sequence("a")], tmp_path, seed=0)
    shard = tmp_path / "shards" / "00000.tar"
    shard.write_bytes(shard.read_bytes()[:kept])

    with pytest.raises(DatasetError, match=r"00000\.tar is damaged"):
        data.read(data.entries[0])


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    data = write_dataset([sequence("a")], tmp_path, seed=0)
    (tmp_path / "shards" / "00000.tar").unlink()

    with pytest.raises(DatasetError, match=r"00000\.tar is missing"):
        data.read(data.entries[0])


def test_what_is_done_to_read_tensors_stays_private(tmp_path: Path) -> None:
    data = write_dataset([sequence("a")], tmp_path, seed=0)

    data.read(data.entries[0])["hr"].zero_()

    reopened = Dataset.open(tmp_path)
    assert torch.equal(reopened.read(reopened.entries[0])["hr"], sequence("a").hr)


def test_an_empty_split_is_refused_and_the_others_are_named(tmp_path: Path) -> None:
    data = write_dataset([sequence("a", split="train"), sequence("b", split="val")], tmp_path, seed=0)

    assert [found.name for found in data.split("val")] == ["b"]
    with pytest.raises(DatasetError, match="no sequence in the split 'test', only in train and val"):
        data.split("test")


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no manifest\.json"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"scale": 4}, "made for scale 4, expected 2"),
        ({"version": 1}, "is of version 1, expected 2: remove the data set and make it again"),
        ({"sequences": [{"name": "a"}]}, "is damaged"),
        ({"conditions": None}, "is damaged"),
        ({"conditions": ["clean", "../../weights"]}, r"'\.\./\.\./weights' is no name of a condition"),
        ({"conditions": ["clean", ".."]}, r"'\.\.' is no name of a condition"),
        ({"sequences": [asdict(entry("a"))]}, "'shard' is no name of a shard"),
        (
            {"sequences": [asdict(replace(entry("a"), shard="shards/../../00000.tar"))]},
            r"'shards/\.\./\.\./00000\.tar' is no name",
        ),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    write_dataset([sequence("a")], tmp_path, seed=0)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | changed))

    with pytest.raises(DatasetError, match=said) as caught:
        Dataset.open(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no safetensors file"),
        (b"\xff" * 64, "is no safetensors file"),
        (safetensors.torch.save({"hr": torch.zeros(5, 3, 16, 16)}), "hr is F32, expected U8"),
        (
            safetensors.torch.save({"hr": torch.zeros(5, 3, 16, 16, dtype=torch.uint8)}),
            r"has no 'clean' of \(5, 3, 8, 8\)",
        ),
        (
            safetensors.torch.save({"hr": torch.zeros(5, 3, 16, 14, dtype=torch.uint8)}),
            r"has no 'hr' of \(5, 3, 16, 16\)",
        ),
    ],
)
def test_a_sequence_that_is_not_what_the_manifest_tells_is_refused_though_its_sha256_is_right(
    tmp_path: Path, content: bytes, said: str
) -> None:
    # given a data set made by a stranger, true to its checksums
    write_dataset([sequence("a"), sequence("b")], tmp_path, seed=0)
    first = asdict(Dataset.open(tmp_path).entries[0])
    place = {"offset_bytes": 512, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = json.loads((tmp_path / "manifest.json").read_text()) | {"sequences": [first | place]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "shards" / "00000.tar").write_bytes(bytes(512) + content)

    # when it is read
    data = Dataset.open(tmp_path)
    with pytest.raises(DatasetError, match=said) as caught:
        data.read(data.entries[0])

    # then that is one line
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "7"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)

    with pytest.raises(DatasetError, match=r"manifest\.json is damaged"):
        Dataset.open(tmp_path)


def test_nothing_to_write_is_an_error_and_leaves_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no usable sequence"):
        write_dataset([], tmp_path, seed=0)
    assert files_in(tmp_path) == {}


def test_an_odd_size_is_refused(tmp_path: Path) -> None:
    odd = DecodedSequence("odd.mp4", "odd", "CC0", None, torch.zeros(3, 3, 15, 16, dtype=torch.uint8))

    with pytest.raises(DatasetError, match="16x15 is not a multiple of 2"):
        write_dataset([odd], tmp_path, seed=0)


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[str]:
    """A data set of three sequences behind an address that is no folder."""
    write_dataset([sequence(name) for name in "abc"], tmp_path, seed=0)
    store = fsspec.filesystem("memory")
    for path, content in files_in(tmp_path).items():
        store.pipe(f"/bucket/data/{path}", content)
    yield "memory://bucket/data"
    store.rm("/bucket", recursive=True)


def test_a_data_set_is_read_through_fsspec(in_memory: str) -> None:
    data = Dataset.open(in_memory)

    assert torch.equal(data.read(data.entries[2])["hr"], sequence("c").hr)
    assert torch.equal(data.read(data.entries[0])["dark"], shrink(sequence("a").hr) // 2)


def test_a_remote_data_set_that_is_missing_or_damaged_is_refused(in_memory: str) -> None:
    data = Dataset.open(in_memory)
    store = fsspec.filesystem("memory")

    store.pipe("/bucket/data/shards/00000.tar", b"something else")
    with pytest.raises(DatasetError, match="is damaged"):
        data.read(data.entries[0])
    store.rm("/bucket/data/shards/00000.tar")
    with pytest.raises(DatasetError, match="is missing"):
        data.read(data.entries[0])
    with pytest.raises(DatasetError, match=r"no manifest\.json in memory://bucket/elsewhere"):
        Dataset.open("memory://bucket/elsewhere")
    with pytest.raises(DatasetError, match="cannot be opened"):
        Dataset.open("gopher://bucket/data")


def test_of_remote_sequences_those_used_last_are_kept(in_memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a cache with room for two sequences
    data = Dataset.open(in_memory)
    monkeypatch.setattr("model.data._CACHE_BYTES", 2 * data.entries[0].size_bytes)
    a, b, c = data.entries

    # when more are read, and the store then disappears
    for read in (a, b, a, c):
        data.read(read)
    fsspec.filesystem("memory").rm("/bucket/data/shards", recursive=True)

    # then the two read last are still there
    data.read(a)
    data.read(c)
    with pytest.raises(DatasetError, match="is missing"):
        data.read(b)
    fsspec.filesystem("memory").pipe("/bucket/data/shards/x", b"")


@contextmanager
def served(folder: Path, *, ranges: bool = True) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """The folder behind a real web server: its address, and the list of what was asked of it, with the ranges."""
    asked: list[tuple[str, str | None]] = []

    async def answer(request: Request) -> Response:
        path = request.path_params["path"]
        asked.append((path, request.headers.get("range")))
        file = folder / path
        if not file.is_file():
            return Response(status_code=404)
        return FileResponse(file) if ranges else Response(file.read_bytes())

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # from here on who connects waits, until the server is there
        app = Starlette(routes=[Route("/{path:path}", answer)])
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        finally:
            server.should_exit = True
            thread.join()


def test_over_http_only_the_bytes_of_the_sequences_read_are_asked_for(tmp_path: Path) -> None:
    # given a data set behind a web server
    write_dataset([sequence(name) for name in "abc"], tmp_path, seed=0)

    with served(tmp_path) as (address, asked):
        # when one of its sequences is read twice, and one more does not exist
        data = Dataset.open(address)
        second = data.entries[1]
        tensors = [data.read(second)["hr"] for _ in range(2)]
        with pytest.raises(DatasetError, match=r"00009\.tar is missing"):
            data.read(replace(second, shard="shards/00009.tar"))
        with pytest.raises(DatasetError, match=r"no manifest\.json"):
            Dataset.open(f"{address}/nowhere")

    # then its bytes went over the wire once
    assert torch.equal(tensors[0], sequence("b").hr)
    span = f"bytes={second.offset_bytes}-{second.offset_bytes + second.size_bytes - 1}"
    assert asked[:3] == [("manifest.json", None), ("shards/00000.tar", span), ("shards/00009.tar", span)]


def test_a_server_without_ranges_is_refused(tmp_path: Path) -> None:
    write_dataset([sequence("a")], tmp_path, seed=0)

    with served(tmp_path, ranges=False) as (address, _):
        data = Dataset.open(address)
        with pytest.raises(DatasetError, match="does not serve ranges"):
            data.read(data.entries[0])
