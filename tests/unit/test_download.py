import errno
import hashlib
import random
import re
import shutil
import tempfile
import time
from collections import namedtuple
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samsvae.runtime.errors import InputError
from samsvae.sources import download as module
from samsvae.sources.download import Patience, download
from samsvae.sources.verification import (
    PublishedFile,
    check_file_size,
    read_receipt,
    verify,
    write_receipt,
)
from tests.loopback import (
    answer,
    cut_after,
    instead,
    serving,
    stall_after,
    whole,
    without_ranges,
)

CONTENT = np.random.default_rng(0).bytes(1_000_000)
OTHER = np.random.default_rng(1).bytes(1_000_000)
HURRIED = Patience(tries=3, first_wait=0.01, longest_wait=2.0, stall=0.3)


@pytest.fixture
def server():
    with serving(first=CONTENT, mirror=CONTENT) as running:
        yield running


@pytest.fixture
def path(tmp_path):
    return tmp_path / "downloads" / "screen.h5ad"


def published(server, *paths, content=CONTENT, **changes):
    given = {
        "file": "screen.h5ad",
        "urls": tuple(server.url(path) for path in paths or ("/first", "/mirror")),
        "size": len(content),
        "md5": hashlib.md5(content).hexdigest(),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return PublishedFile(**{**given, **changes})


def part_of(path):
    return path.with_name(path.name + ".part")


def assert_whole(path):
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def assert_absent(path):
    assert not path.exists()


def asked(server):
    return [path for path, _ in server.requests]


def test_a_file_is_fetched_once(server, path):
    download(published(server), path, HURRIED)
    assert_whole(path)
    download(published(server), path, HURRIED)
    assert asked(server) == ["/first"]


def test_a_cut_connection_is_resumed(server, path):
    server.behaviours["/first"] = [cut_after(400_000), cut_after(300_000)]
    download(published(server), path, HURRIED)
    assert_whole(path)
    assert asked(server) == ["/first"] * 3
    assert server.sent["/first"] < 1_000_000 + 2 * module.BLOCK_BYTES
    assert [h.get("If-Range") for _, h in server.requests] == [None, '"one"', '"one"']


def test_a_line_that_breaks_often_but_moves_on_is_not_given_up(server, path):
    server.behaviours["/first"] = [cut_after(100_000)] * 9
    download(published(server), path, HURRIED)
    assert_whole(path)
    assert len(server.requests) > HURRIED.tries + 5


def test_a_later_call_goes_on_from_what_arrived(server, path):
    server.behaviours["/first"] = [cut_after(600_000)] + [answer(503)] * 3
    with pytest.raises(InputError, match="given up after 3 tries: the server answers 503"):
        download(published(server, "/first"), path, HURRIED)
    assert_absent(path)
    have = part_of(path).stat().st_size
    assert have > 500_000
    server.sent.clear()
    download(published(server, "/first"), path, HURRIED)
    assert_whole(path)
    assert server.sent["/first"] == 1_000_000 - have


def test_the_mirror_completes_what_the_first_address_began(server, path):
    server.behaviours["/first"] = [cut_after(600_000)] + [answer(500)] * 3
    download(published(server), path, HURRIED)
    assert_whole(path)
    assert server.sent["/mirror"] < 500_000


def test_what_an_address_sends_wrongly_comes_from_the_mirror(server, path):
    server.files["/first"] = OTHER
    download(published(server), path, HURRIED)
    assert_whole(path)
    assert asked(server) == ["/first", "/mirror"]


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_one_checksum_is_enough_to_refuse(server, path, algorithm):
    server.files["/first"] = server.files["/mirror"] = OTHER
    only = {name: None for name in ("md5", "sha256") if name != algorithm}
    with pytest.raises(InputError, match=f"its {algorithm} is .*, not the published") as error:
        download(published(server, **only), path, HURRIED)
    assert all(url in str(error.value) for url in published(server).urls)
    assert "'path'" in str(error.value)
    assert list(path.parent.iterdir()) == []


def test_a_truncated_file_with_a_matching_length_is_refused_at_once(server, path):
    server.files["/first"] = CONTENT[:-1]
    download(published(server), path, HURRIED)
    assert_whole(path)
    server.files["/mirror"] = CONTENT[:-1]
    path.unlink()
    with pytest.raises(InputError, match=r"the file there has 999,999 bytes.*1,000,000"):
        download(published(server), path, HURRIED)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("status", [404, 403, 410, 202])
def test_a_file_that_is_not_there_comes_from_the_mirror_without_a_second_try(server, path, status):
    server.behaviours["/first"] = [answer(status)]
    download(published(server), path, HURRIED)
    assert_whole(path)
    assert asked(server) == ["/first", "/mirror"]


def test_no_address_has_it(server, path):
    with pytest.raises(InputError, match="/gone: the server answers 404") as error:
        download(published(server, "/gone", "/lost"), path, HURRIED)
    assert "/lost: the server answers 404" in str(error.value)
    assert list(path.parent.iterdir()) == []


def test_trouble_that_passes_is_waited_for(server, path):
    server.behaviours["/first"] = [answer(503), answer(429, Retry_After=1)]
    started = time.monotonic()
    download(published(server), path, HURRIED)
    assert time.monotonic() - started >= 1
    assert_whole(path)
    assert asked(server) == ["/first"] * 3


def test_a_date_to_come_back_is_honoured_and_a_far_one_is_left_for_the_mirror(server, path):
    soon, late = (formatdate(time.time() + s, usegmt=True) for s in (1.9, 3600))
    server.behaviours["/first"] = [answer(503, Retry_After=soon), answer(503, Retry_After=late)]
    download(published(server), path, HURRIED)
    assert_whole(path)
    assert asked(server) == ["/first", "/first", "/mirror"]


def test_waits_double_up_to_a_limit(server):
    patience = Patience(first_wait=1, longest_wait=5)
    transfer = module._Transfer(published(server), Path("x"), patience)
    random.seed(0)
    waits = [[transfer._wait(n) for _ in range(50)] for n in (1, 2, 3, 4, 5)]
    for chosen, longest in zip(waits, [1, 2, 4, 5, 5], strict=True):
        assert longest / 2 <= min(chosen) < max(chosen) <= longest


def test_a_server_without_ranges_starts_over(server, path):
    server.behaviours["/first"] = [cut_after(400_000, ranges=False), without_ranges]
    download(published(server), path, HURRIED)
    assert_whole(path)
    assert asked(server) == ["/first"] * 2


def test_a_server_without_ranges_that_always_breaks_is_left_in_the_end(server, path):
    server.behaviours["/first"] = [cut_after(400_000, ranges=False)] * 9
    download(published(server), path, HURRIED)
    assert_whole(path)
    assert asked(server).count("/first") <= HURRIED.tries + 1


def test_a_part_longer_than_the_file_is_thrown_away(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT + b"more")
    download(published(server), path, HURRIED)
    assert_whole(path)


def test_a_complete_part_needs_no_transfer(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT)
    download(published(server), path, HURRIED)
    assert_whole(path)
    assert server.requests == []


@pytest.mark.parametrize("left", [OTHER, OTHER[:300_000]])
def test_a_part_of_another_file_is_not_taken_for_this_one(server, path, left):
    path.parent.mkdir()
    part_of(path).write_bytes(left)
    download(published(server), path, HURRIED)
    assert_whole(path)
    assert "/mirror" not in asked(server)


def test_a_file_that_changes_between_tries_is_begun_again(server, path):
    """Once by If-Range, and once by a server that ignores it."""

    def changed(request):
        request.server.tag = '"two"'
        whole(request)

    server.behaviours["/first"] = [cut_after(400_000), changed]
    download(published(server), path, HURRIED)
    assert_whole(path)
    path.unlink()
    server.tag = '"one"'
    server.behaviours["/first"] = [cut_after(400_000), lambda r: whole(r, tag='"two"')]
    download(published(server), path, HURRIED)
    assert_whole(path)
    assert asked(server) == ["/first"] * 5


def test_a_stalled_connection_is_broken_off_and_resumed(server, path, caplog):
    """By the client, which says so: the server would have closed it, but later."""
    server.behaviours["/first"] = [stall_after(500_000, seconds=2)]
    download(published(server), path, HURRIED)
    assert "the server has gone silent" in caplog.text
    assert_whole(path)
    assert server.requests[1][1]["Range"].startswith("bytes=")


def test_a_server_that_only_stalls(server, path):
    server.behaviours["/first"] = [stall_after(0, seconds=1)] * 3
    with pytest.raises(InputError, match="the server has gone silent"):
        download(published(server, "/first"), path, HURRIED)
    assert_absent(path)


def test_nobody_there(server, path):
    urls = ("http://127.0.0.1:9/nobody", server.url("/mirror"))
    download(published(server, urls=urls), path, HURRIED)
    assert_whole(path)


def test_a_body_longer_than_announced_sizes(server, path):
    """Without a length, what is too long shows only on the way."""

    def endless(request):
        request.head(200)
        request.send(CONTENT + b"more")

    server.behaviours["/first"] = [endless]
    download(published(server), path, HURRIED)
    assert_whole(path)


def test_a_body_without_length_that_ends_early_is_resumed(server, path):
    def short(request):
        request.head(200, ETag=request.server.tag)
        request.send(CONTENT[:700_000])

    server.behaviours["/first"] = [short]
    download(published(server), path, HURRIED)
    assert_whole(path)
    assert server.sent["/first"] == 1_000_000


def test_a_page_instead_of_a_file_leaves_nothing_behind(server, path):
    """Whether its length is announced or not."""

    def sign_in(request):
        request.head(200, Content_Type="text/html; charset=utf-8")
        request.send(b"<html>sign in</html>")

    for behaviour in (instead(b"<html>sign in</html>"), sign_in):
        server.behaviours["/first"] = [behaviour]
        with pytest.raises(InputError, match=r"20 bytes|a web page in place of the file"):
            download(published(server, "/first"), path, HURRIED)
        assert list(path.parent.iterdir()) == []


def test_a_disk_without_room_is_seen_before_anything_is_written(server, path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 5, 999_999))
    with pytest.raises(InputError, match=r"no room for screen\.h5ad; 1,000,000 bytes"):
        download(published(server), path, HURRIED)
    assert list(path.parent.iterdir()) == []


def test_a_disk_that_fills_up_keeps_what_arrived(server, path, monkeypatch):
    update = module.RunningChecksums.update

    def full(self, block):
        if self.size > 500_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        update(self, block)

    monkeypatch.setattr(module.RunningChecksums, "update", full)
    with pytest.raises(InputError, match="no room"):
        download(published(server), path, HURRIED)
    assert_absent(path)
    assert part_of(path).stat().st_size > 500_000
    monkeypatch.undo()
    download(published(server), path, HURRIED)
    assert_whole(path)


def test_another_file_under_the_final_name_is_left_alone_and_named(server, path):
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-5])
    with pytest.raises(InputError, match="it has 999,995 bytes, not the published 1,000,000"):
        download(published(server), path, HURRIED)
    assert path.read_bytes() == CONTENT[:-5]
    assert server.requests == []


def test_a_users_own_file_is_verified(server, tmp_path):
    own = tmp_path / "own.h5ad"
    with pytest.raises(InputError, match=r"own\.h5ad: no such file"):
        verify(own, published(server))
    own.write_bytes(CONTENT)
    verify(own, published(server))
    verify(own, published(server, md5=hashlib.md5(CONTENT).hexdigest().upper()))
    own.write_bytes(OTHER)
    check_file_size(own, published(server))
    with pytest.raises(InputError, match=r"own\.h5ad: not the published screen\.h5ad: its md5 is"):
        verify(own, published(server))


def test_progress_is_told(server, path, caplog):
    caplog.set_level("INFO")
    download(published(server), path, HURRIED)
    assert re.search(r"screen\.h5ad: (\S+)/\1 \(100 %\)", caplog.text)


@settings(max_examples=15)
@given(st.lists(st.integers(0, 300_000), max_size=4), st.integers(0, 1_000_000))
def test_whatever_breaks_the_file_is_whole(cuts, left):
    content = CONTENT[:300_000]
    with serving(first=content) as server:
        server.behaviours["/first"] = [cut_after(n) for n in cuts]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            part_of(folder / "f").write_bytes(content[:left])
            patient = Patience(tries=9, first_wait=0.001, stall=1.0)
            download(published(server, "/first", content=content), folder / "f", patient)
            assert (folder / "f").read_bytes() == content


def test_a_receipt_leads_to_the_file_as_long_as_it_is_there(server, tmp_path):
    own, receipt = tmp_path / "own.h5ad", tmp_path / "deep" / "receipt.json"
    own.write_bytes(CONTENT)
    write_receipt(own, published(server), receipt)
    assert read_receipt(receipt) == (str(own), published(server))
    own.write_bytes(CONTENT[:9])
    with pytest.raises(InputError, match=r"gone or changed since.*receipt\.json"):
        read_receipt(receipt)
