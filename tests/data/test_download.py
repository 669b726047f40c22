"""Downloads: what a bad network, a bad server and a bad archive can do, and what is left then."""

import gzip
import hashlib
import io
import json
import lzma
import random
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from source_server import (
    Source,
    careless,
    claim_length,
    damaged,
    drop_after,
    ignore_range,
    running_source,
    slowly,
    status,
    web_page,
)
from typer.testing import CliRunner

from lamm.cli.data import app
from lamm.data import download as download_module
from lamm.data.catalogue import Blocks, Entry, SourceFile
from lamm.data.download import download, ingest_command
from lamm.data.fetch import DownloadError, NotThereError, Patience, fetch
from lamm.data.unpack import unpack
from lamm.errors import ConfigError, DataError

BODY = random.Random(7).randbytes(50_000)
OTHER = random.Random(8).randbytes(50_000)


@pytest.fixture
def source() -> Iterator[Source]:
    with running_source() as running:
        yield running


class Waits(list[float]):
    """The seconds that a download would have waited."""

    def patience(self, attempts: int = 3) -> Patience:
        return Patience(attempts=attempts, timeout=5, sleep=self.append)


@pytest.fixture
def waits() -> Waits:
    return Waits()


def md5(body: bytes) -> str:
    return hashlib.md5(body).hexdigest()


def entry_of(*files: SourceFile, **more: object) -> Entry:
    header = {"licence": "CC0-1.0", "citation": ["nobody"]}
    return Entry.model_validate(
        {"name": "toy", "title": "Toy", "format": "extxyz", "homepage": "https://x.org"}
        | {"header": header, "files": files}
        | more
    )


def one_file(url: str, **more: object) -> Entry:
    return entry_of(SourceFile.model_validate({"part": "all", "url": url, **more}))


# The network


def test_a_file_arrives_and_says_who_asks(source: Source, tmp_path: Path) -> None:
    fetch(source.put("/f", BODY), tmp_path / "f.part")
    assert (tmp_path / "f.part").read_bytes() == BODY
    assert all(agent.startswith("LaMM/") for agent in source.agents)


def test_a_broken_connection_goes_on_where_it_broke(
    source: Source, tmp_path: Path, waits: Waits
) -> None:
    # More breaks than fruitless attempts are allowed: each of them brought something.
    url = source.put("/f", BODY, *[drop_after(9_000)] * 5)
    fetch(url, tmp_path / "f.part", patience=waits.patience(attempts=2))
    assert (tmp_path / "f.part").read_bytes() == BODY
    assert source.ranges("/f") == [None, *(f"bytes={9_000 * n}-" for n in range(1, 6))]


def test_a_connection_that_never_brings_anything_is_given_up(
    source: Source, tmp_path: Path, waits: Waits
) -> None:
    url = source.put("/f", BODY, drop_after(1_000), *[drop_after(0)] * 9)
    with pytest.raises(DownloadError, match=r"ended after 1,000 of 50,000 bytes, 3 times") as error:
        fetch(url, tmp_path / "f.part", patience=waits.patience())
    assert "1,000 bytes are kept in" in str(error.value)
    assert "the same command goes on from there" in str(error.value)
    assert (tmp_path / "f.part").read_bytes() == BODY[:1_000]


def test_waits_grow_up_to_a_limit(source: Source, tmp_path: Path) -> None:
    waits = Waits()
    patience = Patience(attempts=6, first_wait=1, longest_wait=5, sleep=waits.append)
    with pytest.raises(DownloadError, match="503"):
        fetch(source.put("/f", BODY, *[status(503)] * 9), tmp_path / "f.part", patience=patience)
    assert waits == [1, 2, 4, 5, 5]


def test_a_later_run_goes_on(source: Source, tmp_path: Path, waits: Waits) -> None:
    url = source.put("/f", BODY, drop_after(20_000), status(404))
    with pytest.raises(NotThereError):
        fetch(url, tmp_path / "f.part", patience=waits.patience())
    fetch(url, tmp_path / "f.part", patience=waits.patience())
    assert source.ranges("/f")[-1] == "bytes=20000-"
    assert (tmp_path / "f.part").read_bytes() == BODY


def test_a_server_without_ranges_sends_the_whole_again(
    source: Source, tmp_path: Path, waits: Waits
) -> None:
    url = source.put("/f", BODY, drop_after(20_000), ignore_range)
    fetch(url, tmp_path / "f.part", patience=waits.patience())
    assert (tmp_path / "f.part").read_bytes() == BODY
    assert source.ranges("/f") == [None, "bytes=20000-"]


def test_a_server_without_ranges_that_always_breaks_is_given_up(
    source: Source, tmp_path: Path, waits: Waits
) -> None:
    def break_off(request, body):  # type: ignore[no-untyped-def]
        request.head(200, len(body))
        request.wfile.write(body[:20_000])

    url = source.put("/f", BODY, *[break_off] * 20)
    with pytest.raises(DownloadError, match="3 times in a row"):
        fetch(url, tmp_path / "f.part", patience=waits.patience())
    assert len(source.requests) == 4


@pytest.mark.parametrize(
    ("answers", "requests"),
    [([], 3), ([careless], 4)],
    ids=["the server keeps to If-Range", "the server ignores If-Range"],
)
def test_a_file_that_changed_meanwhile_is_not_glued(
    source: Source,
    tmp_path: Path,
    waits: Waits,
    answers: list[Callable[..., None]],
    requests: int,
) -> None:
    url = source.put("/f", BODY, drop_after(20_000), status(404))
    with pytest.raises(NotThereError):
        fetch(url, tmp_path / "f.part", patience=waits.patience())
    source.put("/f", OTHER, *answers)
    fetch(url, tmp_path / "f.part", patience=waits.patience())
    assert (tmp_path / "f.part").read_bytes() == OTHER
    assert len(source.requests) == requests


def test_a_file_that_became_shorter_is_fetched_anew(
    source: Source, tmp_path: Path, waits: Waits
) -> None:
    url = source.put("/f", BODY, drop_after(20_000), status(404))
    with pytest.raises(NotThereError):
        fetch(url, tmp_path / "f.part", patience=waits.patience())

    def whole_or_nothing(request, body):  # type: ignore[no-untyped-def]
        if request.headers.get("Range"):
            request.head(416, 0)
        else:
            ignore_range(request, body)

    source.put("/f", OTHER[:9_000], *[whole_or_nothing] * 9)
    fetch(url, tmp_path / "f.part", patience=waits.patience())
    assert (tmp_path / "f.part").read_bytes() == OTHER[:9_000]


def test_a_beginning_of_unknown_origin_is_not_used(source: Source, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(OTHER[:5_000])
    fetch(source.put("/f", BODY), tmp_path / "f.part")
    assert (tmp_path / "f.part").read_bytes() == BODY
    assert source.ranges("/f") == [None]


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_passing_fault_of_the_server_is_met_with_another_attempt(
    source: Source, tmp_path: Path, waits: Waits, code: int
) -> None:
    url = source.put("/f", BODY, status(code))
    fetch(url, tmp_path / "f.part", patience=waits.patience())
    assert (tmp_path / "f.part").read_bytes() == BODY
    assert waits == [1]


def test_retry_after_is_kept_to(source: Source, tmp_path: Path, waits: Waits) -> None:
    later = formatdate(time.time() + 200, usegmt=True)
    url = source.put("/f", BODY, status(429, Retry_After="77"), status(503, Retry_After=later))
    fetch(url, tmp_path / "f.part", patience=waits.patience())
    assert waits[0] == 77
    assert waits[1] == pytest.approx(200, abs=5)


def test_a_server_that_asks_for_a_day_is_not_waited_for(
    source: Source, tmp_path: Path, waits: Waits
) -> None:
    url = source.put("/f", BODY, status(429, Retry_After="86400"))
    with pytest.raises(DownloadError, match="asks to come back in 86400 s"):
        fetch(url, tmp_path / "f.part", patience=waits.patience())
    assert waits == []


@pytest.mark.parametrize(
    ("code", "says"),
    [(404, "isn't there any more"), (410, "isn't there"), (403, "isn't open to everybody")],
)
def test_a_refusal_is_said_at_once(
    source: Source, tmp_path: Path, waits: Waits, code: int, says: str
) -> None:
    url = source.put("/f", BODY, status(code))
    with pytest.raises(DownloadError, match=rf"{url}: the server answers {code}.*{says}"):
        fetch(url, tmp_path / "f.part", patience=waits.patience())
    assert len(source.requests) == 1


def test_redirections_are_followed_also_when_going_on(
    source: Source, tmp_path: Path, waits: Waits
) -> None:
    target = source.put("/real", BODY, drop_after(20_000))
    url = source.put("/f", b"", *[status(302, Location=target)] * 2)
    fetch(url, tmp_path / "f.part", patience=waits.patience())
    assert (tmp_path / "f.part").read_bytes() == BODY
    assert source.ranges("/real") == [None, "bytes=20000-"]


def test_a_redirection_to_a_local_file_is_refused(
    source: Source, tmp_path: Path, waits: Waits
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    url = source.put("/f", b"", *[status(302, Location=secret.as_uri())] * 9)
    with pytest.raises(DownloadError):
        fetch(url, tmp_path / "f.part", patience=waits.patience())
    assert not (tmp_path / "f.part").read_bytes()


def test_a_web_page_is_not_taken_for_the_file(source: Source, tmp_path: Path, waits: Waits) -> None:
    url = source.put("/f", BODY, web_page)
    with pytest.raises(DownloadError, match="sends a web page"):
        fetch(url, tmp_path / "f.part", patience=waits.patience())


def test_a_file_of_another_size_than_published_is_refused(
    source: Source, tmp_path: Path, waits: Waits
) -> None:
    with pytest.raises(DownloadError, match=r"has 50,000 bytes, expected 49,999: another version"):
        fetch(source.put("/f", BODY), tmp_path / "f.part", size=49_999, patience=waits.patience())


def test_too_long_a_content_length_ends_with_a_message(
    source: Source, tmp_path: Path, waits: Waits
) -> None:
    url = source.put("/f", BODY, *[claim_length(60_000)] * 9)
    with pytest.raises(DownloadError, match=r"50,000 of 60,000|shorter than what had arrived"):
        fetch(url, tmp_path / "f.part", patience=waits.patience())


def test_nobody_at_the_address_is_met_with_attempts_and_then_said(
    tmp_path: Path, waits: Waits
) -> None:
    with running_source() as gone:
        url = gone.address + "/f"
    with pytest.raises(DownloadError, match=r"no connection.*3 times in a row"):
        fetch(url, tmp_path / "f.part", patience=waits.patience())
    assert len(waits) == 2


def test_a_killed_download_goes_on(source: Source, tmp_path: Path) -> None:
    part = tmp_path / "f.part"
    url = source.put("/f", BODY, slowly(0.02, 500))
    code = (
        "import sys; from pathlib import Path; from lamm.data.fetch import fetch;"
        "fetch(sys.argv[1], Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, url, part])
    try:
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size > 3_000):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    have = part.stat().st_size
    assert 3_000 < have < len(BODY)
    fetch(url, part)
    assert source.ranges("/f")[-1] == f"bytes={have}-"
    assert part.read_bytes() == BODY


def test_a_file_that_another_process_is_at_is_left_alone(source: Source, tmp_path: Path) -> None:
    url = source.put("/f", BODY)
    part = tmp_path / "f.part"
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, part], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(DownloadError, match="another process is downloading"):
                fetch(url, part)
        finally:
            process.kill()


# A data set


def test_what_arrives_is_checked_and_recorded(source: Source, tmp_path: Path) -> None:
    url = source.put("/f.xyz", BODY)
    result = download(one_file(url, md5=md5(BODY), bytes=len(BODY)), tmp_path)
    assert (tmp_path / "f.xyz").read_bytes() == BODY
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloaded.jsonl", "f.xyz"]
    record = json.loads((tmp_path / "downloaded.jsonl").read_text())
    assert record["sha256"] == hashlib.sha256(BODY).hexdigest()
    assert record["checked"] == "md5"
    assert result.sources == (tmp_path / "f.xyz",)


def test_what_is_there_is_not_fetched_again(source: Source, tmp_path: Path) -> None:
    entry = one_file(source.put("/f.xyz", BODY))
    download(entry, tmp_path)
    again = download(entry, tmp_path)
    assert len(source.requests) == 1
    assert again.files[0].state == "there"


def test_a_damaged_download_is_fetched_once_more(
    source: Source, tmp_path: Path, waits: Waits
) -> None:
    url = source.put("/f.xyz", BODY, damaged)
    download(one_file(url, md5=md5(BODY)), tmp_path, patience=waits.patience())
    assert (tmp_path / "f.xyz").read_bytes() == BODY
    assert source.ranges("/f.xyz") == [None, None]


def test_a_download_damaged_twice_is_reported(source: Source, tmp_path: Path, waits: Waits) -> None:
    url = source.put("/f.xyz", BODY, damaged, damaged)
    with pytest.raises(DownloadError, match=f"damaged twice: md5 is .*, expected {md5(BODY)}"):
        download(one_file(url, md5=md5(BODY)), tmp_path, patience=waits.patience())
    assert not (tmp_path / "f.xyz").exists()
    assert not (tmp_path / "f.xyz.part").exists()


def test_a_content_length_that_cuts_the_file_is_noticed_by_its_checksum(
    source: Source, tmp_path: Path, waits: Waits
) -> None:
    url = source.put("/f.xyz", BODY, claim_length(40_000))
    download(one_file(url, md5=md5(BODY)), tmp_path, patience=waits.patience())
    assert (tmp_path / "f.xyz").read_bytes() == BODY


def test_without_a_published_checksum_the_first_download_is_the_measure(
    source: Source, tmp_path: Path, waits: Waits
) -> None:
    entry = one_file(source.put("/f.xyz", BODY))
    download(entry, tmp_path)
    (tmp_path / "f.xyz").unlink()
    source.put("/f.xyz", OTHER)
    with pytest.raises(DownloadError, match="as downloaded on"):
        download(entry, tmp_path, patience=waits.patience())
    source.put("/f.xyz", BODY)
    assert download(entry, tmp_path).files[0].state == "fetched"


def test_a_file_from_elsewhere_is_taken_if_it_is_the_right_one(
    source: Source, tmp_path: Path
) -> None:
    entry = one_file(source.put("/f.xyz", BODY), md5=md5(BODY))
    (tmp_path / "f.xyz").write_bytes(BODY)
    assert download(entry, tmp_path).files[0].state == "there"
    assert not source.requests


def test_a_wrong_file_from_elsewhere_is_not_touched(source: Source, tmp_path: Path) -> None:
    entry = one_file(source.put("/f.xyz", BODY), md5=md5(BODY))
    (tmp_path / "f.xyz").write_bytes(OTHER)
    with pytest.raises(DataError, match="was there, and is not the one that belongs here"):
        download(entry, tmp_path)
    assert (tmp_path / "f.xyz").read_bytes() == OTHER


def test_too_small_a_disk_is_said_before(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = source.put("/f.tar", b"")
    entry = one_file(url, size="3 GiB", unpacked_size="10 GiB", unpack="tar")

    class Usage:
        free = 12 * 2**30

    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(DataError, match=r"12\.0 GiB are free, expected about 13\.0 GiB"):
        download(entry, tmp_path)
    assert not source.requests


def test_a_full_disk_is_said_and_what_came_is_kept(source: Source, tmp_path: Path) -> None:
    # The shell's limit on the size of files stands for the disk.
    url = source.put("/f", BODY)
    code = (
        "import resource, signal, sys; from pathlib import Path; from lamm.data.fetch import fetch;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "fetch(sys.argv[1], Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, url, tmp_path / "f.part"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "DownloadError" in result.stderr
    assert "can't write: File too large" in result.stderr
    assert "bytes are kept in" in result.stderr
    fetch(url, tmp_path / "f.part")
    assert (tmp_path / "f.part").read_bytes() == BODY


def test_one_broken_file_ends_the_others(source: Source, tmp_path: Path, waits: Waits) -> None:
    slow = SourceFile(part="slow", url=source.put("/slow", BODY, slowly(0.05, 100)))
    bad = SourceFile(part="bad", url=source.address + "/bad")
    with pytest.raises(NotThereError, match="/bad"):
        download(entry_of(slow, bad), tmp_path, jobs=2, patience=waits.patience())
    assert not (tmp_path / "slow").exists()


def test_parts_are_chosen_by_name_and_pattern(source: Source, tmp_path: Path) -> None:
    names = ("train", "val_id", "val_ood")
    entry = entry_of(*(SourceFile(part=n, url=source.put(f"/{n}", n.encode())) for n in names))
    result = download(entry, tmp_path, ["val_*"])
    assert [one.file.part for one in result.files] == ["val_id", "val_ood"]
    with pytest.raises(ConfigError, match=r"no part 'trai'\. Did you mean 'train'"):
        download(entry, tmp_path, ["trai"])


def test_blocks_that_the_source_lacks_are_left_out(source: Source, tmp_path: Path) -> None:
    for first in (1, 21):
        source.put(f"/{first:04d}_{first + 9:04d}.sdf", BODY)
    blocks = Blocks(
        url=source.address + "/{first:04d}_{last:04d}.sdf", count=9, records=10, optional=True
    )
    result = download(entry_of(files=(), blocks=blocks), tmp_path, ["0-2"])
    assert [one.state for one in result.files] == ["fetched", "missing", "fetched"]
    with pytest.raises(DownloadError, match="none of these parts"):
        download(entry_of(files=(), blocks=blocks), tmp_path, ["7"])


def test_a_mirror_is_asked_for_the_same_paths(source: Source, tmp_path: Path) -> None:
    source.put("/deep/f.xyz?download=1", BODY)
    entry = one_file("https://unreachable.invalid/deep/f.xyz?download=1")
    download(entry, tmp_path, mirror=source.address + "/")
    assert (tmp_path / "f.xyz").read_bytes() == BODY


def test_a_listing_of_figshare_gives_files_and_checksums(source: Source, tmp_path: Path) -> None:
    url = source.put("/files/1", BODY)
    listed = {"name": "a.xyz", "size": len(BODY), "download_url": url, "computed_md5": md5(BODY)}
    listing = source.put("/v2/articles/1", json.dumps({"files": [listed]}).encode())
    result = download(entry_of(files=(), listing=listing), tmp_path)
    assert (tmp_path / "a.xyz").read_bytes() == BODY
    assert result.files[0].record is not None
    assert result.files[0].record.checked == "md5"
    other = source.put("/v2/articles/2", b"[]")
    with pytest.raises(DownloadError, match="expected figshare's list of files"):
        download(entry_of(files=(), listing=other), tmp_path)


def test_the_ingestion_is_given_what_the_patterns_match(source: Source, tmp_path: Path) -> None:
    archive = tar_of({"top/train/a.lmdb": b"1", "top/test/b.lmdb": b"2", "top/val_id/c.lmdb": b"3"})
    url = source.put("/all.tar", archive)
    entry = one_file(url, unpack="tar", ingest=["*/train", "*/val_*"])
    result = download(entry, tmp_path)
    assert result.sources == (tmp_path / "all/top/train", tmp_path / "all/top/val_id")
    command = ingest_command(entry, result.sources)
    assert command.startswith(f"lamm data ingest toy {tmp_path}/all/top/train {tmp_path}/all/top/v")


# Archives


def tar_of(files: dict[str, bytes], *members: tarfile.TarInfo, mode: str = "w:") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in members:
            tar.addfile(member)
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def zip_of(name: str, content: bytes, mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        packed.writestr(member, content)
    return buffer.getvalue()


PACKED = {
    "tar": lambda body: tar_of({"inner/f": body}),
    "tar.gz": lambda body: tar_of({"inner/f": body}, mode="w:gz"),
    "tar.bz2": lambda body: tar_of({"inner/f": body}, mode="w:bz2"),
    "zip": lambda body: zip_of("inner/f", body),
    "xz": lzma.compress,
    "gz": gzip.compress,
}


@pytest.mark.parametrize("kind", PACKED)
def test_archives_are_unpacked_and_deleted(source: Source, tmp_path: Path, kind: str) -> None:
    url = source.put(f"/f.{kind}", PACKED[kind](BODY))
    entry = one_file(url, unpack=kind)
    result = download(entry, tmp_path)
    name = "f" if kind in ("xz", "gz") else "all/inner/f"
    assert (tmp_path / name).read_bytes() == BODY
    assert not (tmp_path / f"f.{kind}").exists()
    assert result.sources == (tmp_path / name.split("/")[0],)
    download(entry, tmp_path)
    assert len(source.requests) == 1


def test_archives_can_be_kept_or_left_packed(source: Source, tmp_path: Path) -> None:
    entry = one_file(source.put("/f.xz", lzma.compress(BODY)), unpack="xz")
    packed = download(entry, tmp_path, unpack=False)
    assert packed.sources == (tmp_path / "f.xz",)
    assert not (tmp_path / "f").exists()
    download(entry, tmp_path, keep_archives=True)
    assert (tmp_path / "f").exists()
    assert (tmp_path / "f.xz").exists()
    assert len(source.requests) == 1


BAD_TARS = {
    "up": tar_of({"../evil": b"x"}),
    "up inside": tar_of({"a/../../evil": b"x"}),
    "absolute": tar_of({"/evil": b"x"}),
    "symbolic link": tar_of({}, link("door", "..")),
    "through a link": tar_of({}, link("door", "/"), link("door/evil", "x")),
    "hard link": tar_of({}, link("door", "/etc/passwd", tarfile.LNKTYPE)),
    "device": tar_of({}, link("null", "", tarfile.CHRTYPE)),
    "pipe": tar_of({}, link("pipe", "", tarfile.FIFOTYPE)),
}


@pytest.mark.parametrize("name", BAD_TARS)
def test_a_malicious_tar_is_refused(source: Source, tmp_path: Path, name: str) -> None:
    entry = one_file(source.put("/f.tar", BAD_TARS[name]), unpack="tar")
    with pytest.raises(DataError, match=r"f\.tar: refused: the member"):
        download(entry, tmp_path / "deep/inside")
    assert {path.name for path in tmp_path.rglob("*")} == {
        *("deep", "inside", "f.tar", "downloaded.jsonl")
    }


@pytest.mark.parametrize(
    ("name", "mode"),
    [("../evil", 0), ("/evil", 0), ("..\\evil", 0), ("C:\\evil", 0), ("a", stat.S_IFLNK | 0o777)],
)
def test_a_malicious_zip_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    archive = tmp_path / "f.zip"
    archive.write_bytes(zip_of(name, b"target", mode))
    with pytest.raises(DataError, match=r"f\.zip: refused: the member"):
        unpack(archive, "zip", tmp_path / "to")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.zip"]


@pytest.mark.parametrize("kind", PACKED)
def test_a_truncated_archive_is_named_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / f"f.{kind}"
    archive.write_bytes(PACKED[kind](BODY)[:20_000])
    with pytest.raises(DataError, match=r"damaged or not whole.*\n.*download it again"):
        unpack(archive, kind, tmp_path / "to")  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"f.{kind}"]


def test_half_an_unpacking_is_begun_anew(tmp_path: Path) -> None:
    archive = tmp_path / "f.tar"
    archive.write_bytes(tar_of({"f": BODY}))
    (tmp_path / ".to.unpacking").mkdir()
    (tmp_path / ".to.unpacking/half").write_text("x")
    unpack(archive, "tar", tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["f"]
    assert not (tmp_path / ".to.unpacking").exists()


# The command


@pytest.fixture
def known(source: Source, monkeypatch: pytest.MonkeyPatch) -> Entry:
    entry = one_file(source.put("/f.xyz", BODY))
    monkeypatch.setattr("lamm.data.catalogue.load_catalogue", lambda: {"toy": entry})
    return entry


@pytest.mark.usefixtures("known")
def test_the_command_says_what_comes_next(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["download", "toy", "--to", str(tmp_path / "my data")])
    assert result.exit_code == 0, result.output
    assert "1 downloaded, 48.8 KiB" in result.stdout
    assert "1 without a published checksum" in result.stdout
    assert f"lamm data ingest toy '{tmp_path}/my data/f.xyz' --to stores/toy" in result.stdout


@pytest.mark.usefixtures("known")
def test_the_command_answers_in_json(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["download", "toy", "--to", str(tmp_path), "--json"])
    answer = json.loads(result.stdout)
    assert answer["files"][0]["state"] == "fetched"
    assert answer["files"][0]["checked"] == "none"
    assert answer["sources"] == [str(tmp_path / "f.xyz")]
