"""A headless Chromium for tests of the pages we write, driven without any package.

It speaks the DevTools protocol over a pipe: JSON messages, each ended by a zero byte, read by the
browser on file descriptor 3 and written on 4.

    with open_browser() as browser:
        page = browser.open(path, width=390, scheme="dark")
        assert page.evaluate("document.title") == "..."
        page.screenshot(tmp_path / "page.png")
        assert page.errors == []
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
VARIABLE = "PODSRL_BROWSER"
TIMEOUT_SECONDS = 240.0


def find_browser() -> str | None:
    """The browser that the variable PODSRL_BROWSER names, else the first on PATH, else None."""
    return os.environ.get(VARIABLE) or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """An open page."""

    def __init__(self, browser: "Browser", session: str) -> None:
        self.browser, self.session = browser, session

    @property
    def errors(self) -> list[str]:
        """Uncaught exceptions, console errors and failed loads so far."""
        self.evaluate("1")  # whatever was reported before this answer has then been read
        return self.browser.errors_of(self.session)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        result = self.browser.call(
            "Runtime.evaluate",
            {"expression": expression, "returnByValue": True, "awaitPromise": True},
            self.session,
        )
        assert "exceptionDetails" not in result, f"{expression}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = True) -> Path:
        """Write what the page looks like as PNG: all of it, or only what the window shows."""
        options: dict[str, Any] = {}
        if whole:
            size = self.browser.call("Page.getLayoutMetrics", {}, self.session)["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            options = {"captureBeyondViewport": True, "clip": clip}
        result = self.browser.call("Page.captureScreenshot", options, self.session)
        path.write_bytes(base64.b64decode(result["data"]))
        return path


class Browser:
    """A running browser."""

    def __init__(self, process: "subprocess.Popen[bytes]", to_browser: int, answers: int) -> None:
        self.process, self.to_browser, self.answers = process, to_browser, answers
        self.buffer, self.number = b"", 0
        self.events: list[dict[str, Any]] = []

    def open(self, path: Path, *, width: int, height: int = 900, scheme: str = "light") -> Page:
        """Open a local page in a window of that size and colour scheme, and wait for its load."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable", {}, session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", size, session)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", {"features": [feature]}, session)
        self.call("Page.navigate", {"url": path.resolve().as_uri()}, session)
        self._wait_for("Page.loadEventFired", session)
        return Page(self, session)

    def call(
        self, method: str, parameters: dict[str, Any], session: str | None = None
    ) -> dict[str, Any]:
        """Send a command of the protocol and return its result."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = memoryview(json.dumps(message).encode() + b"\0")
        while data:
            data = data[os.write(self.to_browser, data) :]
        while (answer := self._read()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def errors_of(self, session: str) -> list[str]:
        """What the browser reported as an error in that page."""
        return [
            text
            for event in self.events
            if event.get("sessionId") == session and (text := _error_in(event)) is not None
        ]

    def _wait_for(self, method: str, session: str) -> None:
        def seen(event: dict[str, Any]) -> bool:
            return event.get("method") == method and event.get("sessionId") == session

        while not any(map(seen, self.events)):
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while b"\0" not in self.buffer:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.answers], [], [], max(left, 0))
            part = os.read(self.answers, 2**16) if ready else b""
            assert part, f"the browser ended or was silent for {TIMEOUT_SECONDS:.0f} s"
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found


def _error_in(event: dict[str, Any]) -> str | None:
    method, found = event.get("method"), event.get("params", {})
    if method == "Runtime.exceptionThrown":
        details = found["exceptionDetails"]
        return str(details.get("exception", {}).get("description") or details["text"])
    if method == "Runtime.consoleAPICalled" and found["type"] in ("error", "assert"):
        return " ".join(str(item.get("value", item.get("description"))) for item in found["args"])
    if method == "Log.entryAdded" and found["entry"]["level"] == "error":
        return f"{found['entry']['text']} {found['entry'].get('url', '')}"
    return None


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start the browser; skip the test, saying so, where there is none."""
    program = find_browser()
    if program is None:
        pytest.skip(f"needs a browser: {' or '.join(NAMES)} on PATH, or {VARIABLE}")
    # Descriptors 3 and 4 of this process may be in use; the child has them for itself.
    for_child, to_browser = os.pipe()
    answers, from_child = os.pipe()

    def connect() -> None:
        copies = [fcntl.fcntl(pipe, fcntl.F_DUPFD, 10) for pipe in (for_child, from_child)]
        os.dup2(copies[0], 3)
        os.dup2(copies[1], 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--remote-debugging-pipe",
                f"--user-data-dir={profile}",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=connect,
        )
        os.close(for_child)
        os.close(from_child)
        try:
            yield Browser(process, to_browser, answers)
        finally:
            process.kill()
            process.wait()
            os.close(to_browser)
            os.close(answers)
