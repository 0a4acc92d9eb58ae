"""A replica's environment: read once, every problem in one error."""

from __future__ import annotations

import base64
import dataclasses

import pytest
from modalnomad_sdk import contract as c
from modalnomad_sdk.runner.config import BadConfiguration, Listen, read_config

GOOD = {
    c.ENV_CONTRACT: "1",
    c.ENV_APP: "app",
    c.ENV_FUNCTION: "f",
    c.ENV_REVISION: "r",
    c.ENV_POOL: "p",
    c.ENV_REPLICA: "3.12",
    c.ENV_SOURCE: "script:a/b.py",
    c.ENV_BUNDLE: "/bundle",
    c.ENV_TICKET_SHA256: "0" * 64,
    c.ENV_LISTEN: "fd:5",
}


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def test_the_least_there_can_be() -> None:
    config = read_config(GOOD)
    assert config.listen == Listen(fd=5)
    assert (config.max_inputs, config.timeout, config.startup_timeout, config.network) == (1, 300, 300, "exclusive")
    assert config.name == "p 3.12"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.app = "other"  # type: ignore[misc]


def test_everything_set() -> None:
    more = {
        c.ENV_LIFELINE: "fd:6",
        c.ENV_WEB_PORTS: "8000,8501",
        c.ENV_PARAMETERS: encoded('{"a": 1, "b": {"bytes": "AP8="}, "c": true, "d": "x"}'),
        c.ENV_TIMEOUT: "1.5",
        c.ENV_WEB_URLS: '{"f": "http://f"}',
        c.ENV_LOG_TAGS: "1",
    }
    config = read_config({**GOOD, **more})
    assert config.parameters == {"a": 1, "b": b"\x00\xff", "c": True, "d": "x"}
    assert (config.lifeline, config.web_ports, config.timeout) == (6, (8000, 8501), 1.5)
    assert config.startup_timeout == 1.5  # the Function's timeout, unless it has its own
    assert (config.web_urls, config.log_tags) == ({"f": "http://f"}, True)


def test_the_port_of_a_nomad_task() -> None:
    without = {name: value for name, value in GOOD.items() if name != c.ENV_LISTEN}
    config = read_config({**without, "NOMAD_PORT_http": "23456", "NOMAD_IP_http": "10.0.0.7"})
    assert config.listen == Listen(host="10.0.0.7", port=23456)


def test_all_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(BadConfiguration) as caught:
        read_config({})
    for name in GOOD:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (c.ENV_CONTRACT, "2"),
        (c.ENV_CONTRACT, "one"),
        (c.ENV_REPLICA, "3"),
        (c.ENV_SOURCE, "b.py"),
        (c.ENV_BUNDLE, "relative"),
        (c.ENV_TICKET_SHA256, "A" * 64),
        (c.ENV_LISTEN, "unix:/x"),
        (c.ENV_LISTEN, "port:70000"),
        (c.ENV_LIFELINE, "6"),
        (c.ENV_NETWORK, "bridge"),
        (c.ENV_WEB_PORTS, "8000,"),
        (c.ENV_MAX_INPUTS, "0"),
        (c.ENV_MAX_INPUTS, "-1"),
        (c.ENV_TIMEOUT, "nan"),
        (c.ENV_TIMEOUT, "-1"),
        (c.ENV_GRACE_PERIOD, "soon"),
        (c.ENV_PARAMETERS, "%%%"),
        (c.ENV_PARAMETERS, encoded("[1]")),
        (c.ENV_PARAMETERS, encoded('{"a": 1.5}')),
        (c.ENV_WEB_URLS, "{"),
        (c.ENV_WEB_URLS, '["x"]'),
        (c.ENV_GPUS, "one"),
    ],
)
def test_each_wrong_value_is_named(name: str, value: str) -> None:
    with pytest.raises(BadConfiguration) as caught:
        read_config({**GOOD, name: value})
    assert len(caught.value.problems) == 1
    assert name in str(caught.value)
