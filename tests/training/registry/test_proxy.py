"""A service on this machine is asked without a proxy."""

from __future__ import annotations

import urllib.request

import pytest

from training.registry.client import opener_for


def test_no_proxy_is_used_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")

    def proxied(url: str) -> bool:
        return any(
            isinstance(handler, urllib.request.ProxyHandler) and "http" in handler.proxies
            for handler in opener_for(url).handlers
        )

    assert not proxied("http://127.0.0.1:3000")
    assert proxied("http://classifier.example")
