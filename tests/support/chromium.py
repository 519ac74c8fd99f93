"""A headless Chromium that a test drives over the DevTools protocol, through pipes and the standard library alone.

https://chromedevtools.github.io/devtools-protocol/ describes the methods. All calls block; use them in a thread.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 60  # for one answer


class Page:
    """One page of a browser."""

    def __init__(self, questions: int, answers: int) -> None:
        self._questions = questions
        self._answers = answers
        self._buffer = b""
        self._number = 0
        self._events: deque[dict[str, Any]] = deque(maxlen=1000)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; fail if it is refused."""
        self._number += 1
        question: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            question["sessionId"] = self._session
        os.write(self._questions, json.dumps(question).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                result: dict[str, Any] = message["result"]
                return result
            self._events.append(message)

    def open(self, url: str) -> int:
        """Load a page; return the status of the answer."""
        return self._loaded(lambda: self.call("Page.navigate", url=url))

    def reload(self) -> int:
        """Load the page again; return the status of the answer."""
        return self._loaded(lambda: self.call("Page.reload"))

    def click(self, selector: str) -> int:
        """Click on a link or a button that leads to another page; return the status of the answer."""
        element = f"document.querySelector({json.dumps(selector)})"
        return self._loaded(lambda: self.evaluate(f"{element}.click()"))

    def fill(self, **fields: str | bool) -> None:
        """Fill in the fields of the page's form, by name."""
        for name, value in fields.items():
            what = "checked" if isinstance(value, bool) else "value"
            self.evaluate(f"document.forms[0].elements[{json.dumps(name)}].{what} = {json.dumps(value)}")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, once a promise is settled."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self) -> str:
        """Return the text that the page shows."""
        return str(self.evaluate("document.body.innerText"))

    def html(self) -> str:
        """Return the page as HTML."""
        return str(self.evaluate("document.documentElement.outerHTML"))

    def screen(self, width: int, *, dark: bool = False, height: int = 800) -> None:
        """Set the size of the window and the colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """Write the whole page as PNG."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=self._area())
        path.write_bytes(base64.b64decode(taken["data"]))

    def events(self, method: str) -> list[dict[str, Any]]:
        """Return the events of a kind that have arrived."""
        return [each["params"] for each in self._events if each.get("method") == method]

    def _area(self) -> dict[str, float]:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def _loaded(self, act: Any) -> int:
        """Do something that loads a page, and wait for it; return the status of the page's answer."""
        self._events.clear()
        act()
        while not (answers := self._documents()):
            self._events.append(self._receive())
        return int(answers[-1]["response"]["status"])

    def _documents(self) -> list[dict[str, Any]]:
        """Return the answers that were pages, once one of them is loaded: events of an earlier page may be late."""
        names = [each.get("method") for each in self._events]
        found = [each for each in self.events("Network.responseReceived") if each["type"] == "Document"]
        if not found or "Network.responseReceived" not in names:
            return []
        first = names.index("Network.responseReceived")
        return found if "Page.loadEventFired" in names[first:] else []

    def _receive(self) -> dict[str, Any]:
        ends = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0, ends - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._answers, 1 << 20)
            assert data, "the browser has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


@contextmanager
def chromium() -> Iterator[Page]:
    """Run a browser for the block, with a profile of its own."""
    assert BROWSER is not None
    asked, questions = os.pipe()
    answers, answered = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                   "--remote-debugging-pipe", f"--user-data-dir={profile}"]  # fmt: skip
        pipes = ["sh", "-c", f'exec "$@" 3</dev/fd/{asked} 4>/dev/fd/{answered}', "sh"]
        process = subprocess.Popen(
            [*pipes, *command], pass_fds=(asked, answered), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(asked)
        os.close(answered)
        try:
            yield Page(questions, answers)
        finally:
            process.kill()
            process.wait()
            os.close(questions)
            os.close(answers)
