"""An ingestion that was broken off goes on where it was, and gives the same bytes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lamm.data import reading
from lamm.data.cards import CardHeader
from lamm.data.ingest import IngestProgress, ingest
from lamm.data.staging import unfinished
from lamm.errors import ConfigError, DataError, StoreError

HEADER = CardHeader(name="made", max_atoms=5)
SHARD_BYTES = 300_000


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of 2,500 and 1,200 records; some are too large, one can't be used."""
    rng = np.random.default_rng(7)
    folder = tmp_path_factory.mktemp("sources")
    paths = []
    for name, count in (("a.extxyz", 2500), ("b.extxyz", 1200)):
        records = []
        for _ in range(count):
            n = int(rng.integers(1, 7))
            rows = "".join(
                "H {:.6f} {:.6f} {:.6f}\n".format(*rng.uniform(0, 5, 3)) for _atom in range(n)
            )
            records.append(f"{n}\nenergy={rng.normal():.6f}\n{rows}")
        paths.append(folder / name)
        paths[-1].write_text("".join(records))
    with paths[1].open("a") as file:
        file.write("1\nenergy=nan\nH 0 0 0\n")
    return paths


def content(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.iterdir())}


@pytest.fixture(scope="module")
def whole(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store that an undisturbed ingestion gives."""
    to = tmp_path_factory.mktemp("whole") / "s"
    card = ingest("extxyz", sources, to, HEADER, on_error="skip", shard_bytes=SHARD_BYTES)
    assert len(card.shards) > 3
    assert card.num_skipped > 500
    return content(to)


class StoppedError(RuntimeError):
    """What breaks an ingestion off in these tests."""


@pytest.mark.parametrize("after", [1, 900, 1900, 2900])
def test_what_was_broken_off_goes_on_with_the_same_bytes(
    sources: list[Path], whole: dict[str, bytes], tmp_path: Path, after: int
) -> None:
    def stop(so_far: IngestProgress) -> None:
        if so_far.structures >= after:
            raise StoppedError

    to = tmp_path / "s"
    with pytest.raises(StoppedError):
        ingest(
            "extxyz", sources, to, HEADER, on_error="skip", progress=stop, shard_bytes=SHARD_BYTES
        )
    assert not to.exists()
    closed = {path.name: path.stat() for path in unfinished(to).glob("shard-*.arrow")}
    assert (after < 1900) or closed

    seen: list[IngestProgress] = []
    ingest(
        "extxyz",
        sources,
        to,
        HEADER,
        on_error="skip",
        progress=seen.append,
        shard_bytes=SHARD_BYTES,
    )
    assert content(to) == whole
    assert not unfinished(to).exists()
    assert seen[-1].taken_up >= after
    for name, before in closed.items():
        now = (to / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_records_that_were_read_are_not_read_again(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamm.data.readers import extxyz

    def stop(so_far: IngestProgress) -> None:
        if so_far.structures >= 1500:
            raise StoppedError

    with pytest.raises(StoppedError):
        ingest("extxyz", sources, tmp_path / "s", HEADER, on_error="skip", progress=stop)
    built = []
    make = extxyz.extxyz_structure
    monkeypatch.setattr(
        extxyz,
        "extxyz_structure",
        lambda record, *rest: built.append(record.number) or make(record, *rest),
    )
    ingest("extxyz", sources, tmp_path / "s", HEADER, on_error="skip")
    assert built[0] == 2000  # of a.extxyz, of which two pieces of a thousand were in the spool
    assert len(built) == 500 + 1201


def test_after_kill_9_the_same_command_finishes(
    sources: list[Path], whole: dict[str, bytes], tmp_path: Path
) -> None:
    card = tmp_path / "card.yaml"
    card.write_text("name: made\nmax_atoms: 5\n")
    to = tmp_path / "s"
    command = [
        *(sys.executable, "-m", "lamm", "data", "ingest", "extxyz", *map(str, sources)),
        *("--to", str(to), "--card", str(card), "--workers", "2", "--on-error", "skip"),
        *("--shard-bytes", str(SHARD_BYTES)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not any(unfinished(to).glob("work/spool/*.jsonl")):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.wait(timeout=20)
    assert not to.exists()
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert content(to) == whole


def test_a_shard_that_was_damaged_since_is_written_again(
    sources: list[Path], whole: dict[str, bytes], tmp_path: Path
) -> None:
    def stop(so_far: IngestProgress) -> None:
        if so_far.structures >= 2900:
            raise StoppedError

    to = tmp_path / "s"
    with pytest.raises(StoppedError):
        ingest(
            "extxyz", sources, to, HEADER, on_error="skip", progress=stop, shard_bytes=SHARD_BYTES
        )
    last = max(unfinished(to).glob("shard-*.arrow"))
    last.write_bytes(last.read_bytes()[:-8])
    # The spool no longer has the rows of that shard: what lies there is refused, not patched over.
    with pytest.raises(StoreError, match=r"Add --restart|goes on") as error:
        ingest("extxyz", sources, to, HEADER, on_error="skip", shard_bytes=SHARD_BYTES)
    assert "damaged" in str(error.value)
    ingest("extxyz", sources, to, HEADER, on_error="skip", shard_bytes=SHARD_BYTES, restart=True)
    assert content(to) == whole


def test_the_rest_of_another_ingestion_is_refused(sources: list[Path], tmp_path: Path) -> None:
    def stop(so_far: IngestProgress) -> None:
        raise StoppedError

    to = tmp_path / "s"
    with pytest.raises(StoppedError):
        ingest("extxyz", sources, to, HEADER, on_error="skip", progress=stop)
    other = CardHeader(name="other")
    with pytest.raises(StoreError, match=r"had other card.\n.*--restart"):
        ingest("extxyz", sources, to, other, on_error="skip")
    with pytest.raises(StoreError, match=r"had other sources"):
        ingest("extxyz", sources[:1], to, HEADER, on_error="skip")
    card = ingest("extxyz", sources, to, other, on_error="skip", restart=True)
    assert card.name == "other"
    assert list(tmp_path.iterdir()) == [to]


def test_a_bad_record_late_in_the_data_keeps_closed_shards(
    sources: list[Path], whole: dict[str, bytes], tmp_path: Path
) -> None:
    to = tmp_path / "s"
    with pytest.raises(DataError, match=r"b.extxyz, record 1200 .*energy is nan"):
        ingest("extxyz", sources, to, HEADER, shard_bytes=SHARD_BYTES)
    assert any(unfinished(to).glob("shard-*.arrow"))
    ingest("extxyz", sources, to, HEADER, on_error="skip", shard_bytes=SHARD_BYTES)
    assert content(to) == whole


def test_two_processes_do_not_write_one_store(sources: list[Path], tmp_path: Path) -> None:
    def second(so_far: IngestProgress) -> None:
        with pytest.raises(StoreError, match="another process is ingesting to this path"):
            ingest("extxyz", sources, tmp_path / "s", HEADER)
        raise StoppedError

    with pytest.raises(StoppedError):
        ingest("extxyz", sources, tmp_path / "s", HEADER, on_error="skip", progress=second)


def test_a_cluster_gives_the_same_bytes(
    sources: list[Path], whole: dict[str, bytes], tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        ingest(
            *("extxyz", sources, tmp_path / "s", HEADER),
            cluster=address,
            on_error="skip",
            shard_bytes=SHARD_BYTES,
        )
        assert content(tmp_path / "s") == whole
        with pytest.raises(DataError, match=r"b.extxyz, record 1200 .*energy is nan"):
            ingest("extxyz", sources[1:], tmp_path / "t", HEADER, cluster=address)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_cluster_that_is_not_there_is_refused(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(reading, "_CONNECT_S", 0.5)
    with pytest.raises(ConfigError, match=r"--cluster tcp://127.0.0.1:9: no Dask scheduler"):
        ingest("extxyz", sources, tmp_path / "s", HEADER, cluster="tcp://127.0.0.1:9")
    assert list(tmp_path.iterdir()) == []
