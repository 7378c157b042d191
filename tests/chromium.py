"""A headless Chromium for tests, spoken to over its debugging pipe: JSON messages, each ended by NUL, on fds 3 and 4.

That is the whole of what the page's tests need (real clicks and keys, other sizes, what the console said), so there is
no package for it to install. https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ANSWER_S = 120  # a hang, not a measure
KEYS = {"Enter": ("\r", 13), "Escape": ("", 27), "Tab": ("", 9)}


def find() -> str | None:
    """The path of a Chromium that starts (a distribution's stub does not); None where there is none."""
    return next((path for path in filter(None, map(shutil.which, NAMES)) if _starts(path)), None)


def _starts(executable: str) -> bool:
    return subprocess.run([executable, "--version"], capture_output=True, check=False).returncode == 0


class Page:
    """One tab. ``trouble`` holds the errors that the console showed, exceptions among them."""

    def __init__(self, read: int, write: int) -> None:
        self._in, self._out = os.fdopen(read, "rb"), os.fdopen(write, "wb", buffering=0)
        self._buffer, self._last, self._session, self._loaded = b"", 0, "", False
        self.trouble: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command; what happens before it comes is noted."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        return next(found for found in self._messages() if found.get("id") == message["id"])["result"]

    def open(self, path: Path, width: int, *, dark: bool = False) -> Self:
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self._loaded = False
        self.call("Page.navigate", url=path.as_uri())
        messages = self._messages()
        while not self._loaded:  # it may have come before the answer
            next(messages)
        return self

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        """A real click in the middle of the first element that fits."""
        self.run(
            f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center', inline: 'center'}})"
        )
        box = self.run(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        text, code = KEYS[key]
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )  # fmt: skip

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            while b"\0" not in self._buffer:
                if not select.select([self._in], [], [], ANSWER_S)[0]:
                    raise TimeoutError(f"Chromium has said nothing for {ANSWER_S} s")
                if not (data := os.read(self._in.fileno(), 1 << 16)):
                    raise EOFError("Chromium is gone")
                self._buffer += data
            line, _, self._buffer = self._buffer.partition(b"\0")
            message = json.loads(line)
            assert "error" not in message, message
            self._note(message)
            yield message

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                self.trouble.append(json.dumps(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.trouble.append(json.dumps(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.trouble.append(params["entry"]["text"])


@contextmanager
def browse(executable: str, profile: Path) -> Iterator[Page]:
    """A tab of a browser of its own, gone afterwards."""
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    # The shell puts the pipes where Chromium looks for them; without a sandbox, because tests may run as root.
    command = f'exec "$0" "$@" 3<&{their_in} 4>&{their_out}'
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    process = subprocess.Popen(
        ["bash", "-c", command, executable, *options, "--no-first-run", f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(their_in, their_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_in)
    os.close(their_out)
    try:
        yield Page(our_in, our_out)
    finally:
        process.kill()
        process.wait()
