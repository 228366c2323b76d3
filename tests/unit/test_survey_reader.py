"""Reading a partition: few requests, little memory, the next block while the last is used."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from waiting import eventually

from perseid.errors import BadInputError, NotFoundError
from perseid.storage import Storage
from perseid.survey import open_partition, read_cutouts, write_cutouts
from perseid.survey.bytesource import BytesSource, FetchStats, MapSource, RangeSource
from perseid.survey.reader import BLOCK_BYTES

RANGED = [".pt", ".safetensors", ".npz", ".h5", ".fits"]


@pytest.mark.s3
@pytest.mark.parametrize("suffix", RANGED)
def test_ranges_over_s3(suffix: str, s3, make_cutouts, same_bits) -> None:
    cutouts = make_cutouts(1000)
    url = s3.bucket()
    write_cutouts(cutouts, f"{url}/1{suffix}")
    with open_partition(Storage(url), f"1{suffix}") as reader:
        opening = reader.stats.num_requests
        assert opening <= (2 if suffix != ".h5" else 6)  # head and tail
        assert reader.stats.num_bytes < 400_000
        at = 0
        for block in reader.blocks(128):
            assert same_bits(block, cutouts[at : at + 128])
            at += len(block)
        assert at == 1000
        stats = reader.stats
        assert reader.size > 1000 * 20480
        assert stats.num_requests - opening == 3  # 384 rows in a request, 128 in a block
        assert stats.num_bytes < reader.size * 1.02


@pytest.mark.s3
def test_what_a_record_says_of_the_requests(s3, make_cutouts) -> None:
    url = s3.bucket()
    write_cutouts(make_cutouts(1500), f"{url}/1.pt")
    began = time.time()
    with open_partition(Storage(url), "1.pt") as reader:
        for _ in reader.blocks():
            pass
    record = reader.stats.as_record()
    assert record["s3_num_requests"] == 2 + 4
    assert 0 < record["s3_min_time"] <= record["s3_avg_time"] <= record["s3_max_time"]
    assert record["s3_avg_time"] * 6 == pytest.approx(record["s3_total_time"])
    first, last = record["s3_first_request_time"], record["s3_last_response_time"]
    assert began <= first < last <= time.time()
    assert reader.stats.fetch_seconds == record["s3_total_time"]
    assert reader.stats.decode_seconds > 0


@pytest.mark.s3
def test_parquet_and_compressed_archives_over_s3(s3, make_cutouts, same_bits) -> None:
    url, cutouts = s3.bucket(), make_cutouts(900)
    write_cutouts(cutouts, f"{url}/1.parquet")
    assert same_bits(read_cutouts(f"{url}/1.parquet"), cutouts)
    store = Storage(url)
    with open_partition(store, "1.parquet") as reader:
        assert [len(block) for block in reader.blocks(500)] == [500, 400]


@pytest.mark.s3
def test_a_missing_object_is_named(s3) -> None:
    url = s3.bucket()
    with pytest.raises(NotFoundError, match=f"{url}/no/1.pt is not there"):
        open_partition(Storage(url), "no/1.pt")


def test_a_map_needs_no_requests(tmp_path: Path, make_cutouts) -> None:
    write_cutouts(make_cutouts(100), tmp_path / "1.pt")
    with open_partition(Storage(tmp_path), "1.pt") as reader:
        blocks = list(reader.blocks(30))
    assert [len(block) for block in blocks] == [30, 30, 30, 10]
    assert reader.stats.as_record()["s3_num_requests"] == 0
    assert not blocks[0].images.flags.owndata
    assert not blocks[0].images.flags.writeable


def test_blocks_stay_valid_after_the_reader_is_closed(tmp_path, make_cutouts, same_bits) -> None:
    cutouts = make_cutouts(1000)
    write_cutouts(cutouts, tmp_path / "1.pt")
    with open_partition(Storage(tmp_path), "1.pt") as reader:
        blocks = list(reader.blocks(400))
        again = list(reader.blocks(400))
    for at, block in zip((0, 400, 800), blocks, strict=True):
        assert same_bits(block, cutouts[at : at + 400])
    assert same_bits(again[2], cutouts[800:])


def test_a_reader_left_early_leaves_no_thread(make_cutouts) -> None:
    write_cutouts(make_cutouts(2000), "memory://left-early/1.pt")
    with open_partition(Storage("memory://left-early"), "1.pt") as reader:
        for _ in reader.blocks(100):
            break
    eventually(lambda: not _prefetching())
    Storage("memory://left-early").delete(["1.pt"])


def _prefetching() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("perseid-prefetch")]


def test_the_next_rows_are_fetched_while_the_caller_computes(make_cutouts) -> None:
    write_cutouts(make_cutouts(2000), "memory://ahead/1.pt")
    with open_partition(Storage("memory://ahead"), "1.pt") as reader:
        opening = reader.stats.num_requests
        blocks = reader.blocks(409)  # BLOCK_BYTES hold 409 rows
        next(blocks)
        eventually(lambda: reader.stats.num_requests >= opening + 2)
        assert reader.stats.num_requests == opening + 2  # the first and the next, not more
    Storage("memory://ahead").delete(["1.pt"])


def test_a_block_has_at_least_one_row(tmp_path: Path, make_cutouts) -> None:
    write_cutouts(make_cutouts(3), tmp_path / "1.pt")
    with open_partition(Storage(tmp_path), "1.pt") as reader:
        with pytest.raises(BadInputError, match="at least one row, not 0"):
            next(reader.blocks(0))
        assert [len(block) for block in reader.blocks(10**9)] == [3]


def test_one_image_may_be_larger_than_a_block(tmp_path: Path, make_cutouts, same_bits) -> None:
    cutouts = make_cutouts(3, 5, 700, 700)
    assert cutouts.images[0].nbytes > BLOCK_BYTES
    write_cutouts(cutouts, tmp_path / "1.pt")
    with open_partition(Storage(tmp_path), "1.pt") as reader:
        assert [len(block) for block in reader.blocks()] == [1, 1, 1]
    assert same_bits(read_cutouts(tmp_path / "1.pt"), cutouts)


MEMORY = """
import sys
from pathlib import Path
from perseid.storage import Storage
from perseid.survey import open_partition

def now(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) >> 10

idle, top, resident = now("RssAnon"), 0, now("VmRSS")
peak = resident
with open_partition(Storage(sys.argv[1]), sys.argv[2]) as reader:
    for block in reader.blocks(64):
        float(block.images.sum())
        top, peak = max(top, now("RssAnon") - idle), max(peak, now("VmRSS"))
    print(reader.rows, top, peak - resident)
"""


def memory(base: str, name: str) -> list[int]:
    """Rows, and MB above the idle process: anonymous memory, and all of its memory."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, base, name], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_a_100mb_partition_on_disk_needs_little_memory(tmp_path: Path, make_cutouts) -> None:
    write_cutouts(make_cutouts(5113), tmp_path / "1.pt")
    rows, anonymous, resident = memory(str(tmp_path), "1.pt")
    assert rows == 5113
    assert anonymous < 15
    assert resident < 60  # pages of the map that have been used are given back


@pytest.mark.s3
def test_a_100mb_partition_on_s3_needs_little_memory(s3, make_cutouts) -> None:
    url = s3.bucket()
    write_cutouts(make_cutouts(5113), f"{url}/1.pt")
    rows, anonymous, resident = memory(url, "1.pt")
    assert rows == 5113
    assert anonymous < 70
    assert resident < 90


def test_the_head_and_tail_of_an_object_are_kept() -> None:
    store, data = Storage("memory://kept"), np.random.default_rng(0).bytes(3 << 20)
    store.put("x", data)
    source = RangeSource(store, "x")
    assert source.stats.num_requests == 2
    for start, length in ((0, 100), (65_000, 500), (len(data) - 1000, 1000), (len(data), 0)):
        assert source.read(start, length) == data[start : start + length]
    assert source.stats.num_requests == 2
    assert source.read(1 << 20, 1 << 20) == data[1 << 20 : 2 << 20]
    assert source.stats.num_requests == 3
    store.put("small", b"abc")
    assert RangeSource(store, "small").stats.num_requests == 1


@pytest.mark.parametrize("kind", ["map", "bytes", "ranges"])
def test_sources_read_exactly_what_is_there(kind: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    (tmp_path / "x").write_bytes(data)
    store = Storage("memory://exactly")
    store.put("x", data)
    source = {
        "map": lambda: MapSource(tmp_path / "x"),
        "bytes": lambda: BytesSource(data),
        "ranges": lambda: RangeSource(store, "x"),
    }[kind]()
    assert source.size == len(data)
    assert source.read(70_000, 100_000) == data[70_000:170_000]
    source.release(0, len(data))
    assert source.read(0, len(data)) == data
    for start, length in ((-1, 5), (0, len(data) + 1), (len(data), 1), (5, -1)):
        with pytest.raises(Exception, match="truncated or corrupt"):
            source.read(start, length)


def test_stats_of_several_partitions_add_up() -> None:
    total, parts = FetchStats(), [FetchStats() for _ in range(3)]
    for part in parts:
        with part.request(10):
            time.sleep(0.001)
        total.add(part)
    total.add(FetchStats(decode_seconds=2.0))
    assert (total.num_requests, total.num_bytes, total.decode_seconds) == (3, 30, 2.0)
    assert total.min_time == min(part.min_time for part in parts)
    assert total.max_time == max(part.max_time for part in parts)
    assert total.first_request_time == parts[0].first_request_time
    assert total.last_response_time == parts[2].last_response_time
    assert total.total_time == pytest.approx(sum(part.total_time for part in parts))
