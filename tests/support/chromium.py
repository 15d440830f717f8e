"""A page in headless Chromium, driven by the DevTools protocol over a pipe: no driver, no library, no port."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
).split()
KEYS = {"Enter": ("\r", 13), "Space": (" ", 32), "Tab": ("", 9)}  # text, Windows key code


class Page:
    """One page; `faults` holds every error of its console, its scripts and its requests.

    Args:
        profile: an empty folder for Chromium.
        width, height: of the window, in CSS pixels.
        dark: what the system is said to prefer.
    """

    def __init__(self, url: str, profile: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        chromium = shutil.which("chromium")
        assert chromium, "this test needs Chromium: apt-get install chromium (Debian), then run it again"
        from_us, self._out = os.pipe()
        self._in, to_us = os.pipe()
        redirect = f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}'  # Chromium reads from 3 and writes to 4
        command = ["bash", "-c", redirect, chromium, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, pass_fds=(from_us, to_us), stderr=subprocess.DEVNULL)
        os.close(from_us)
        os.close(to_us)
        self._numbers, self._buffer = itertools.count(1), b""
        self._session: str | None = None
        self.faults: list[str] = []
        try:
            target = self.send("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
            preferred = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            self.send("Emulation.setEmulatedMedia", features=[preferred])
            self._size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
            self.send("Emulation.setDeviceMetricsOverride", **self._size)
            self.open(url)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._out)
        self._process.terminate()
        self._process.wait(20)
        os.close(self._in)

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; events that come meanwhile are looked at."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self._look_at(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _next(self, seconds: float = 60) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], seconds)
            part = os.read(self._in, 1 << 20) if ready else b""
            assert part, "Chromium said nothing more"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _look_at(self, event: dict[str, Any]) -> None:
        kind, params = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.faults.append(json.dumps(params["exceptionDetails"]))
        elif kind == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.faults.append(json.dumps(params["args"]))
        elif kind == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.faults.append(params["entry"]["text"])
        elif kind == "Network.requestWillBeSent" and params["request"]["url"].startswith("http"):
            self.faults.append(f"a request to {params['request']['url']}")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        result = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, f"{script}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"not true within {seconds} s: {condition}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """A real click in the middle of an element, which must be visible there."""
        x, y = self.run(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            "found.scrollIntoView({block: 'center'}); const box = found.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """A key press, for the element that has the focus."""
        text, code = KEYS[key]
        common = {"key": text or key, "code": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, picture: Path) -> Path:
        """The whole page as PNG."""
        height = self.run("document.documentElement.scrollHeight")
        self.send("Emulation.setDeviceMetricsOverride", **{**self._size, "height": height})
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        shot = self.send("Page.captureScreenshot")
        picture.write_bytes(base64.b64decode(shot["data"]))
        return picture
