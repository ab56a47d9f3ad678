"""The `WHETSTONE_*` variables are typed, and an unknown one is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.settings import Settings, SettingsError, read_settings


def test_unset_and_empty_variables_mean_the_defaults() -> None:
    assert read_settings({"WHETSTONE_PACKAGE": "", "PATH": "/bin"}) == Settings()


def test_an_empty_list_of_open_routes_opens_none() -> None:
    assert read_settings({"WHETSTONE_OPEN_ROUTES": ""}).open_routes == ()


def test_values_are_typed() -> None:
    settings = read_settings({"WHETSTONE_PACKAGE": "a/b", "WHETSTONE_THREADS": "3"})
    assert settings == Settings(package=Path("a/b"), threads=3)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WHETSTONE_PACKGE", "x", "did you mean WHETSTONE_PACKAGE"),
        ("WHETSTONE_PORT", "tcp://10.0.0.1:3000", "enableServiceLinks: false"),
        ("WHETSTONE_SERVICE_PORT_HTTP", "3000", "enableServiceLinks: false"),
        ("WHETSTONE_CANARY_PORT_3000_TCP_ADDR", "10.0.0.1", "enableServiceLinks: false"),
        ("WHETSTONE_THREADS", "many", "WHETSTONE_THREADS='many'"),
        ("WHETSTONE_THREADS", "0", "WHETSTONE_THREADS='0'"),
        # A template leaves this when its own variable is not set.
        ("WHETSTONE_API_KEYS_FILE", "", "API_KEYS_FILE is empty: set it to a file, or unset it"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_settings({name: value})
