"""Answer requests that ask for another protocol in this one.

Java's HttpClient, Spring's RestClient and `curl --http2` send `Upgrade: h2c` with their requests,
and a server may ignore it (RFC 9110, section 7.8). httptools does not: it takes the bytes after the
headers for the other protocol. uvicorn only warns and then takes the body for the next request
(uvicorn#2722, httptools#124). Such a request could smuggle another one in.
"""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn import config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# The requests of one connection that wait for the answer to another one. uvicorn reads on with each
# answer, thousands of requests each time, so one connection could fill the memory.
MAX_PIPELINED = 256


class NoUpgrades(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, which ignores every `Upgrade` header.

    httptools stops after the headers of such a request, before the body. A new parser then gets the
    same headers without `Upgrade`, and the bytes after them. It decides where the body ends and
    where the next request begins. Trailers are dropped. A connection on which too many requests
    wait is closed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # uvicorn would format a line for every request, though nobody reads its log.
        self.access_log = False

    def data_received(self, data: bytes) -> None:
        """Parse the bytes that arrived, each of them once."""
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        try:
            while rest:
                try:
                    self.parser.feed_data(rest)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    rest = rest[upgrade.args[0] :]
                    self._read_again()
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)

    def on_headers_complete(self) -> None:
        """Begin a request, unless its headers are to be read again."""
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            # Trailers are not headers (RFC 9110, section 6.5.1). uvicorn would mix them, with an
            # Authorization, for example, that no gateway has seen.
            self.headers = []
            if len(self.pipeline) > MAX_PIPELINED:
                self.transport.close()

    def on_message_complete(self) -> None:
        """End a body, unless the headers are to be read again: then none has begun."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _read_again(self) -> None:
        """Give the last headers to a new parser, without `Upgrade`.

        Raises:
            httptools.HttpParserError: for CONNECT, which asks for a tunnel without a header.
        """
        method = self.parser.get_method()
        version = self.parser.get_http_version().encode()
        if method == b"CONNECT":
            raise httptools.HttpParserError("CONNECT is not supported")
        # httptools has joined headers of several lines.
        lines = [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        head = b"\r\n".join([b"%s %s HTTP/%s" % (method, self.url, version), *lines, b"\r\n"])
        self.parser = httptools.HttpRequestParser(self)
        # Like uvicorn's own parser: data after the last request of a connection is no error.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(head)


def ignore_upgrades() -> None:
    """Make uvicorn's servers ignore `Upgrade`, from now on.

    BentoML starts uvicorn with the protocol `auto`, so the meaning of `auto` is replaced.
    """
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{NoUpgrades.__name__}"
