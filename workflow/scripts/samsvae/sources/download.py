"""Resumable download of published files, with verification.

Bytes are collected in ``<name>.part`` beside the final name. The final name appears only when size
and checksums are the published ones.
"""

import email.utils
import errno
import logging
import os
import random
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import requests

from samsvae.runtime.errors import InputError
from samsvae.sources.verification import (
    ByteProgress,
    PublishedFile,
    RunningChecksums,
    checksums_of,
    verify,
)

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 16  # lost at most if a connection breaks
RETRYABLE_STATUS = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Patience:
    """Policy of retries.

    Attributes
    ----------
    tries
        Largest number of successive tries of a URL without new bytes.
    first_wait, longest_wait
        Seconds before the second try, doubled for each further one, and their limit. If a server
        asks for a longer wait, the next URL is tried.
    stall
        Seconds without a byte after which a connection counts as broken.
    """

    tries: int = 6
    first_wait: float = 1.0
    longest_wait: float = 120.0
    stall: float = 60.0


class _RetryableError(Exception):
    """Interrupted transfer, which may be retried."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _UnusableUrlError(Exception):
    """URL that a retry does not help."""


def download(published: PublishedFile, path: str | Path, patience: Patience | None = None) -> None:
    """Download a published file, unless it exists already.

    Parameters
    ----------
    published
        URLs in order of preference, size and checksums.
    path
        The file; bytes are collected in a file of this name with the suffix ``.part``, from which
        a later call resumes.
    patience
        Policy of retries.

    Raises
    ------
    InputError
        If no URL provides the file, with the answer of each; if the disk is full, or another file
        has its name.
    """
    final = Path(path)
    if final.exists():
        verify(final, published)
        logger.info("%s is there already, and whole", final)
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    transfer = _Transfer(published, final, patience or Patience())
    faults = []
    for url in published.urls:
        try:
            transfer.fetch(url)
        except _UnusableUrlError as fault:
            logger.warning("%s: %s", url, fault)
            faults.append(f"- {url}: {fault}")
        else:
            os.replace(transfer.part, final)
            logger.info("%s is whole", final)
            return
    raise InputError(
        "\n".join(
            [
                f"{published.file} could not be downloaded:",
                *faults,
                "Look at the network and start again, which goes on from what has arrived; or "
                "fetch the file by other means and set the screen's 'path' to it.",
            ]
        )
    )


class _Transfer:
    """Transfer of a file from one or several URLs to its ``.part``."""

    def __init__(self, published: PublishedFile, final: Path, patience: Patience) -> None:
        self.published = published
        self.part = final.with_name(final.name + ".part")
        self.patience = patience
        self.checksums = RunningChecksums(published)
        self.entity_tag: str | None = None
        self.url: str | None = None  # source of the first byte of the part, if known

    def fetch(self, url: str) -> None:
        """Complete and verify the part from a URL."""
        if self.part.exists() and self.part.stat().st_size > self.published.size:
            logger.warning("%s is longer than the file; starting over", self.part)
            self._discard()
        self._complete(url)
        difference = self.checksums.difference()
        if difference and self.url != url:
            logger.warning("with what was there before, %s; starting over", difference)
            self._discard()
            self._complete(url)
            difference = self.checksums.difference()
        if difference:
            self._discard()
            raise _UnusableUrlError(f"what it sends is not the file: {difference}")

    def _complete(self, url: str) -> None:
        """Retry until the part is complete."""
        self._update_checksums()
        waits, furthest = 0, self._size()
        while self._size() < self.published.size:
            try:
                self._transfer(url)
            except _RetryableError as fault:
                waits = 1 if self._size() > furthest else waits + 1
                furthest = max(furthest, self._size())
                if waits >= self.patience.tries:
                    raise _UnusableUrlError(f"given up after {waits} tries: {fault}") from None
                seconds = self._wait(waits) if fault.wait is None else fault.wait
                if seconds > self.patience.longest_wait:
                    raise _UnusableUrlError(f"{fault}, for {seconds:.0f} s") from None
                logger.warning("%s: %s; next try in %.0f s", url, fault, seconds)
                time.sleep(seconds)

    def _wait(self, waits: int) -> float:
        longest = min(self.patience.first_wait * 2 ** (waits - 1), self.patience.longest_wait)
        return random.uniform(
            longest / 2, longest
        )  # jitter, so that clients retry at different times

    def _transfer(self, url: str) -> None:
        """Request the missing bytes once."""
        self._update_checksums()
        have = self._size()
        headers = {"Accept-Encoding": "identity"}  # ranges refer to uncompressed bytes
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.url == url and self.entity_tag:
                headers["If-Range"] = self.entity_tag
        try:
            with requests.get(
                url, headers=headers, stream=True, timeout=self.patience.stall
            ) as response:
                self._check_answer(response, url, have)
                self._write(response, url)
        except requests.exceptions.InvalidURL as fault:
            raise _UnusableUrlError(str(fault)) from None
        except requests.exceptions.RequestException as fault:
            raise _RetryableError(_describe_fault(fault)) from None
        if self._size() < self.published.size:
            raise _RetryableError("the connection was closed early")

    def _check_answer(self, response: requests.Response, url: str, have: int) -> None:
        """Check that the response is the file, or the requested range of it."""
        status = response.status_code
        said = f"the server answers {status} {response.reason or ''}".rstrip()
        if status in RETRYABLE_STATUS:
            raise _RetryableError(said, _retry_after(response))
        if status == 416 or (status == 206 and self._is_another_version(response, url)):
            self._discard()
            raise _RetryableError(f"{said}, and cannot go on from byte {have:,}")
        if status == 200:
            total = response.headers.get("Content-Length")
        elif status == 206:
            header = response.headers.get("Content-Range", "")
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", header)
            if match is None or int(match[1]) != have:
                raise _UnusableUrlError(f"{said} with the range {header!r}")
            total = None if match[2] == "*" else match[2]
        else:
            raise _UnusableUrlError(said)
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise _UnusableUrlError(f"{said} with a web page in place of the file")
        if total is not None and int(total) != self.published.size:
            raise _UnusableUrlError(
                f"the file there has {int(total):,} bytes, not the published "
                f"{self.published.size:,}"
            )

    def _is_another_version(self, response: requests.Response, url: str) -> bool:
        tag = response.headers.get("ETag")
        return self.url == url and None not in (self.entity_tag, tag) and tag != self.entity_tag

    def _write(self, response: requests.Response, url: str) -> None:
        """Write the content of a response, from the start or at the end."""
        if response.status_code == 200:
            if self._size():
                logger.warning("%s sends the whole file again; starting over", url)
            self._discard()
        if not self._size():
            self.url = url
        tag = response.headers.get("ETag")
        self.entity_tag = tag if tag and not tag.startswith("W/") else None
        self._check_space()
        progress = ByteProgress(self.published.file, self.published.size, self._size())
        try:
            with self.part.open("ab") as file:
                for block in response.iter_content(BLOCK_BYTES):
                    if self.checksums.size + len(block) > self.published.size:
                        raise _UnusableUrlError("it sends more bytes than the file has")
                    file.write(block)
                    self.checksums.update(block)
                    progress.update(len(block))
                file.flush()
                os.fsync(file.fileno())
        except OSError as fault:
            if fault.errno != errno.ENOSPC:
                raise
            raise InputError(self._no_space()) from None

    def _check_space(self) -> None:
        if shutil.disk_usage(self.part.parent).free < self.published.size - self._size():
            raise InputError(self._no_space())

    def _no_space(self) -> str:
        missing = self.published.size - self._size()
        return (
            f"{self.part.parent}: no room for {self.published.file}; {missing:,} bytes are still "
            "to come. Make room there, or let the folder be a link to a larger disk, and start "
            "again; what has arrived is kept."
        )

    def _update_checksums(self) -> None:
        """Recompute the checksums if they are not those of the part."""
        if self.checksums.size != self._size():
            self.checksums = checksums_of(self.part, self.published)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.checksums = RunningChecksums(self.published)
        self.url = self.entity_tag = None


def _describe_fault(fault: requests.exceptions.RequestException) -> str:
    """Describe a failed request briefly."""
    if isinstance(fault, requests.exceptions.Timeout) or "timed out" in str(fault):
        return "the server has gone silent"
    if isinstance(fault, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    if isinstance(fault, requests.exceptions.SSLError):
        return f"the connection is not secure: {fault}"
    return f"no connection: {fault}"


def _retry_after(response: requests.Response) -> float | None:
    """Parse the Retry-After header, in seconds."""
    said = response.headers.get("Retry-After", "")
    if said.isdigit():
        return float(said)
    try:
        return max(email.utils.parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
