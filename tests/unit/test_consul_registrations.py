"""What somebody registered under the replicas' name: a replica, or nothing, and never the end of the watch."""

from __future__ import annotations

from typing import Any

import pytest

from modalnomad.hashicorp.consul.registrations import registration
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, ReplicaKey, TcpAddress
from modalnomad.render.nomad import dispatch_body

KEY = ReplicaKey(PoolKey(RevisionId("a1" * 16), ""), 0, 1)
META = {**dispatch_body(KEY, reason="")["Meta"], "revision": KEY.pool.revision, "max_inputs": "8"}


def item(*, address: Any = "10.0.0.1", port: Any = 20001, **meta: Any) -> dict[str, Any]:
    return {"Service": {"Meta": {**META, **meta}, "Address": address, "Port": port}, "Checks": [{"Status": "passing"}]}


def test_a_replica() -> None:
    found = registration(item())

    assert found is not None
    assert (found.key, found.address, found.max_inputs) == (KEY, TcpAddress("10.0.0.1", 20001), 8)


def test_one_on_a_machine_that_is_gone_does_not_pass() -> None:
    """Consul's check of the node itself has no service."""
    for own, node in (("passing", "critical"), ("critical", "passing")):
        checks = [{"CheckID": "serfHealth", "ServiceID": "", "Status": node}, {"ServiceID": "x", "Status": own}]
        found = registration({**item(), "Checks": checks})
        assert found is not None
        assert not found.passing


@pytest.mark.parametrize(
    "odd",
    [
        7,
        None,
        [],
        {"Service": 7},
        {"Service": {"Meta": [1]}},
        item(number=7),
        item(port="x"),
        item(port=0),
        item(port=-5),
        item(port=99999),
        item(max_inputs=7),
        item(parameters="%%%"),
        {**item(), "Checks": [7]},
    ],
)
def test_what_is_none(odd: Any) -> None:
    assert registration(odd) is None


def test_a_number_of_any_length_is_not_told() -> None:
    found = registration(item(max_inputs="9" * 5000))

    assert found is not None
    assert found.max_inputs == 0
