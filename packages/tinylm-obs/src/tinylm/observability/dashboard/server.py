"""tinylm-obs · the dashboard's server: one process, one loop that follows files, on this machine only.

`serve` runs until Ctrl-C. Nothing is asked of another host: NiceGUI brings its scripts. It does NOT draw (`page.py`).
"""

import asyncio
import contextlib
import gc
import ipaddress
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._errors import ObservabilityError
from .._values import utf8

if TYPE_CHECKING:
    from .board import Board
    from .store import Store

FIRST_PORT = 8100
_PAUSE = 0.5  # seconds between two looks at the files


def serve(directory: Path, host: str, port: int | None, browser: bool) -> None:
    """Show the runs at or below `directory`. port: None takes the first free one from 8100 on, 0 any free one. Raises
    ObservabilityError without NiceGUI, without the directory, or when the port is taken."""
    if not directory.is_dir():
        raise ObservabilityError(f"wanted a directory with runs, got {directory}, which is none")
    port = _free_port(host, port)
    try:
        with _quick_imports():
            import nicegui
            from nicegui import ui

            from .board import Board
            from .store import Store
    except ImportError as error:
        raise ObservabilityError(
            f'wanted {error.name} for the dashboard, got no such package: pip install "tinylm-obs[ui]"'
        ) from None
    store, boards = Store(directory), set[Board]()
    store.scan()
    address = f"http://{host if ':' not in host else f'[{host}]'}:{port}"
    app = nicegui.app
    if _is_loopback(host):  # a page of another site that has its name point here gets no answer
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]", host])
    app.get("/profile/{run:path}")(_profiles(store))
    app.on_startup(lambda: _follow(store, boards))
    app.on_startup(lambda: _announce(host, port, f"{address} shows {directory}; Ctrl-C ends it"))
    from fastapi.middleware.gzip import GZipMiddleware

    from .page import build

    async def root() -> None:
        await build(store, boards)

    ui.run(
        root,
        host=host,
        port=port,
        title=f"{utf8(directory.resolve().name)} · TinyLM",
        favicon="📈",
        dark=None,
        reload=False,
        show=browser,
        show_welcome_message=False,
        reconnect_timeout=60,  # a busy machine is no broken connection: a page that reloads forgets its zoom
        tailwind=False,
        gzip_middleware_factory=None if _is_loopback(host) else GZipMiddleware,  # nothing is won by packing for oneself
    )


@contextlib.contextmanager
def _quick_imports() -> Iterator[None]:
    """Imports in two thirds of the time: no search for garbage, and without the two HTTP clients that Socket.IO's
    server loads where they are installed, for its client alone."""
    loaded: dict[str, Any] = sys.modules
    clients = [name for name in ("aiohttp", "requests") if name not in loaded]
    loaded.update(dict.fromkeys(clients))  # None: an import of it fails, as where it is not installed
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        for name in clients:
            del loaded[name]


async def _announce(host: str, port: int, words: str) -> None:
    """Say it as soon as the server answers: at the start of the application it does not listen yet."""
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            break
        await asyncio.sleep(0.01)
    print(words, file=sys.stderr, flush=True)


async def _follow(store: "Store", boards: "set[Board]") -> None:
    """For ever: look for new runs and new rows. A long walk through directories is not repeated at once."""
    next_scan = 0.0
    while True:
        if time.monotonic() >= next_scan:
            began = time.monotonic()
            await asyncio.to_thread(store.scan)
            next_scan = time.monotonic() + max(2.0, 20 * (time.monotonic() - began))
        wanted = {label for board in list(boards) for label in board.chosen}
        await asyncio.to_thread(store.poll, wanted)
        behind = any(run.behind for label, run in store.runs.items() if label in wanted)
        await asyncio.sleep(0.01 if behind else _PAUSE)


def _profiles(store: "Store") -> Any:
    """/profile/RUN?page=NAME: a page of the run's own profile directory, and nothing else of the disk."""
    from fastapi import HTTPException
    from fastapi.responses import FileResponse

    def profile(run: str, page: str) -> FileResponse:
        known = store.runs.get(run)
        if known is not None:
            for path in profile_pages(known.path):
                if path.relative_to(known.path).as_posix() == page:
                    return FileResponse(path, media_type="text/html")
        raise HTTPException(404, f"no profile {page!r} in the run {run!r}")

    return profile


def profile_pages(run: Path) -> list[Path]:
    """The profile.html files of a run, newest first."""
    pages = [path for path in (run / "profile").rglob("profile.html") if path.is_file()]
    return sorted(pages, key=lambda path: -path.stat().st_mtime)


def _free_port(host: str, port: int | None) -> int:
    for candidate in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + 100):
        try:
            with socket.create_server((host, candidate), family=_family(host)) as server:
                number: int = server.getsockname()[1]
                return number
        except OSError as error:
            last = error
    wanted = f"port {port}" if port is not None else f"a free port from {FIRST_PORT} on"
    raise ObservabilityError(f"wanted {wanted} on {host}, got {last.strerror}; choose another with --port")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
