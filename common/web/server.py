"""Serving the page until it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NoReturn

import gradio as gr
from gradio import processing_utils
from starlette.middleware import Middleware

from common.errors import DataError
from common.web.address import LOCAL, cannot_listen
from common.web.page import CSS, FONTS, MONOSPACED
from common.web.uploads import Limits

# What the page may load, said to the browser: this server, and what is in the page itself.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; form-action 'self'; "
    "frame-ancestors 'self'; base-uri 'self'"
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class OnlyFromHere:
    """Tells the browser with every answer to load nothing from elsewhere."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY.encode()),
                ]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, with_policy)


async def _refuse_address(url: str) -> NoReturn:
    raise DataError(f"{url[:80]}: pictures are not fetched from other machines: upload the file")


def serve(page: gr.Blocks, host: str, port: int, limits: Limits) -> None:
    """Serve the page until a KeyboardInterrupt.

    Args:
        page: made by `make_page`.
        host, port: where to listen.
        limits: of an upload.

    Raises:
        ConfigError: the address or the port cannot be had.
    """
    try:
        url = launch(page, host, port, limits)
        if host not in LOCAL:
            print(f"note      {host}: whoever reaches this machine can ask; there is no password")
        print(f"page      {url} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        return
    finally:
        page.close(verbose=False)


def launch(page: gr.Blocks, host: str, port: int, limits: Limits) -> str:
    """Start to serve in a thread of its own; returns the page's address."""
    processing_utils.async_ssrf_protected_get = _refuse_address
    page.queue(default_concurrency_limit=1, max_size=16)
    theme = gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=MONOSPACED)
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            max_file_size=limits.bytes,
            app_kwargs={"middleware": [Middleware(OnlyFromHere)]},
            theme=theme,
            css=CSS,
        )
    except OSError as error:
        raise cannot_listen(host, port, error) from None
    return url
