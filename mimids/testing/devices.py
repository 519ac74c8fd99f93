"""Devices of a test's users: `client()` is for code under trio or asyncio, `ask()` for synchronous code."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs

from mimids.client import Device, open_device

T = TypeVar("T")

ASK_SECONDS: Final = 120  # longer than any call that the client's own limits allow


class DeviceThread:
    """A thread with an event loop, in which synchronous code uses devices. It starts with the first call."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._opened = AsyncExitStack()
        self._devices: dict[str, Device] = {}
        self._lock = threading.Lock()

    def ask(self, account: DeviceAccount, call: Callable[[Device], Awaitable[T]]) -> T:
        """Call `call` with the device in the thread; return its result, or raise its error."""

        async def run() -> T:
            device = self._devices.get(account.token)
            if device is None:
                device = self._devices[account.token] = await self._opened.enter_async_context(account.client())
            return await call(device)

        return self._run(run())

    def close(self) -> None:
        """Close the devices' connections and end the thread."""
        if self._loop is not None and self._thread is not None:
            self._run(self._opened.aclose())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.SelectorEventLoop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="mimids.testing", daemon=True)
                self._thread.start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(ASK_SECONDS)


@attrs.frozen
class DeviceAccount:
    """A device with its token, and the ways to use it."""

    user_id: str
    name: str
    token: str = attrs.field(repr=False)
    url: str
    ca_file: Path
    _thread: DeviceThread = attrs.field(repr=False, eq=False)

    def client(self) -> AbstractAsyncContextManager[Device]:
        """Open the device, under trio or asyncio: `async with account.client() as device`."""
        return open_device(self.url, self.token, trust=self.ca_file)

    def ask(self, call: Callable[[Device], Awaitable[T]]) -> T:
        """Use the device from synchronous code: `account.ask(lambda device: device.welcomes())`."""
        return self._thread.ask(self, call)
