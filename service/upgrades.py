"""Requests that ask for another protocol are answered in this one.

Java's HttpClient and Spring's RestClient send `Upgrade: h2c` with their requests, `curl --http2`
does, and a server may ignore it (RFC 9110, section 7.8). httptools does not: it takes what follows
the headers for the other protocol, and uvicorn, which only warns, then takes the body for the next
request (uvicorn#2722, httptools#124). So such a request could smuggle another one in.
"""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn import config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Requests of one connection that wait for the answer to another one. uvicorn reads on with every
# answer, a packet of thousands each time, so one connection could fill the memory.
MOST_PIPELINED = 256


class NoUpgrades(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, to which an `Upgrade` header, of whatever protocol, is none.

    httptools stops behind the headers of such a request, before it looks for a body. A new parser
    is then given the same headers without `Upgrade`, and what came behind them: it alone decides
    where the body ends and where the next request begins. Trailers are dropped, and a connection
    on which too many requests wait is closed.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        # Nobody reads uvicorn's own, and it would put a line together for every request.
        self.access_log = False

    def data_received(self, data: bytes) -> None:
        """Read what came; every part of it once."""
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
        """Begin a request; one that is to be read again is none yet."""
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            # What comes behind a chunked body is none of its headers (RFC 9110, section 6.5.1):
            # uvicorn would put it among them, an Authorization that no gateway has seen, too.
            self.headers = []
            if len(self.pipeline) > MOST_PIPELINED:
                self.transport.close()

    def on_message_complete(self) -> None:
        """End a body; where httptools stops, none has begun."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _read_again(self) -> None:
        """Give the headers that were read last to a new parser, without `Upgrade`.

        Raises:
            httptools.HttpParserError: CONNECT, which asks for a tunnel without any header.
        """
        method = self.parser.get_method()
        version = self.parser.get_http_version().encode()
        if method == b"CONNECT":
            raise httptools.HttpParserError("there are no tunnels here")
        # What HTTP/1.1 has as one header in several lines is one line by now.
        lines = [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        head = b"\r\n".join([b"%s %s HTTP/%s" % (method, self.url, version), *lines, b"\r\n"])
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn's own: a request that comes behind the last one of a connection is no error.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(head)


def ignore_upgrades() -> None:
    """Make the servers that uvicorn starts from now on ignore `Upgrade`.

    BentoML starts uvicorn and leaves the protocol to it, so what `auto` stands for is replaced.
    """
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{NoUpgrades.__name__}"
