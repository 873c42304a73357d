"""Chromium, as a reader of the report would use it."""

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--disable-domain-reliability", "--metrics-recording-only",
]  # fmt: skip


@dataclass(frozen=True)
class Visit:
    """What came of opening a page: what it looks like after its scripts, and what it did."""

    html: str
    console: list[str]
    requests: list[str]


def visit(page: Path, script: str = "", width: int = 1300) -> Visit:
    """Open a page from disk, and run a script in it; skip the test where there is no Chromium.

    The width is that of the window, in pixels.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no Chromium to open the report in")
    with tempfile.TemporaryDirectory() as folder:
        copy = page.with_name(f"visited-{page.name}")
        copy.write_text(page.read_text() + (f"<script>{script}</script>" if script else ""))
        log = Path(folder) / "net.json"
        try:
            done = subprocess.run(
                [chromium, *QUIET, f"--user-data-dir={folder}/profile", f"--log-net-log={log}",
                 f"--window-size={width},900", "--enable-logging=stderr",
                 "--virtual-time-budget=20000", "--dump-dom", copy.as_uri()],
                capture_output=True, text=True, timeout=180, check=False,
            )  # fmt: skip
        finally:
            copy.unlink()
        assert "</html>" in done.stdout, done.stderr[-2000:]
        events = json.loads(log.read_text())["events"]
    return Visit(
        html=done.stdout,
        console=[line for line in done.stderr.splitlines() if "CONSOLE" in line],
        requests=sorted({url for event in events for url in _asked_by_a_page(event)}),
    )


def _asked_by_a_page(event: dict[str, Any]) -> list[str]:
    """The address of a request that leaves the machine, unless Chromium itself asks."""
    params = event.get("params", {})
    url = str(params.get("url", ""))
    from_page = params.get("initiator", "not an origin") != "not an origin"
    return [url] if from_page and url.startswith(("http:", "https:", "ws:", "wss:")) else []
