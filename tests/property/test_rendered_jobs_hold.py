"""Whatever a program declares, its job is right, or the user is told why there is none."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from modalnomad.model.errors import UserError
from modalnomad.model.replica import PoolKey, ReplicaKey
from modalnomad.render.cluster import CHILD_META, key_of
from modalnomad.render.nomad import check_job, dispatch_body, one_of, parent_job, prewarm_job
from modalnomad.settings import NomadSettings, VaultSettings
from tests.support.rendered import CONTAINER, rendering, revision

TOKEN = "s.never-to-be-seen"
REFERENCES = {
    *(f"${{NOMAD_META_{name}}}" for name in CHILD_META),
    "${NOMAD_ALLOC_ID}",
    "${NOMAD_TASK_DIR}",
    "${attr.kernel.name}",
    "${device.model}",
    "${device.attr.memory}",
}
"""All that Nomad is meant to replace."""
TEMPLATE = (
    r'\{\{ with secret "secret/data/modalnomad/main/[a-z0-9_/-]+" \}\}\{\{ \.Data\.data \| toJSON \}\}\{\{ end \}\}'
)

wild = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["${HOME}", "a${NOMAD_ALLOC_ID}b", "{{ env }}", "${", "$${x}", "<b>`*_", "a b", "a/b", "ů"]),
)
"""What would be replaced, expanded, marked up or not allowed."""


def mostly(usual: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Now and then something wild."""
    return st.one_of(*[usual] * 5, wild)


words = mostly(st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,30}", fullmatch=True))
cards = st.from_regex(r"(ANY|[AH][0-9]{1,3})(-[0-9]{2}GB)?!?", fullmatch=True)
gpus: st.SearchStrategy[list[str]] = st.one_of(
    st.just([]),
    st.lists(cards, max_size=4),
    st.lists(st.builds("{}:{}".format, cards, st.integers(1, 2)), max_size=2),
    st.lists(wild.filter(lambda text: text and ":" not in text and "\n" not in text), max_size=1),
)
amounts = st.one_of(st.none(), st.integers(1, 1_000_000))
secrets: st.SearchStrategy[dict[str, str]] = st.one_of(
    st.builds(dict, name=mostly(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True))),
    st.builds(dict, anonymous=mostly(st.from_regex(r"[0-9a-f]{64}", fullmatch=True))),
    st.builds(dict, name=st.just("db"), environment=st.sampled_from(["main", "main", "prod"])),
)
functions = st.fixed_dictionaries(
    {
        "tag": words,
        "timeout": st.floats(0.001, 1e8),
        "resources": st.fixed_dictionaries(
            {
                "cpu": st.one_of(st.none(), st.tuples(st.floats(0.0001, 256), st.none())),
                "memory": st.one_of(st.none(), st.tuples(st.integers(1, 10**7), amounts)),
                "gpu": gpus,
                "ephemeral_disk": amounts,
            }
        ),
        "secrets": st.lists(secrets, max_size=3),
        "parameters": st.lists(st.builds(dict, name=words, type=st.just("str")), max_size=2),
        "endpoints": st.lists(
            st.builds(dict, name=words, kind=st.just("web_server"), port=st.integers(1, 65535)), max_size=3
        ),
        "scaling": st.fixed_dictionaries({"max_inputs": st.integers(1, 1000), "max_containers": amounts}),
        "entry": words,
        "workdir": st.one_of(st.none(), words),
        "env": st.lists(st.tuples(words, words), max_size=3).map(tuple),
    }
)


def texts(value: Any) -> Iterator[str]:
    """All strings of a job, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from (name, *texts(each))
    elif isinstance(value, list):
        for each in value:
            yield from texts(each)


@settings(max_examples=250)
@given(functions, st.sampled_from(["raw_exec", "docker"]), words, words)
def test_a_job_is_right_or_refused_and_nothing_of_the_users_is_replaced(
    function: dict[str, Any], driver: str, deployed_by: str, source: str
) -> None:
    made = revision(reference=CONTAINER if driver == "docker" else None, **function)
    deploy = dataclasses.replace(
        rendering(made),
        nomad=NomadSettings.model_validate({"driver": driver, "token": TOKEN}),
        vault=VaultSettings.model_validate({"token": TOKEN}),
        web_urls={each.name: f"https://shop-{number}.example" for number, each in enumerate(made.function.endpoints)},
        deployed_by=deployed_by,
        source=source,
    )
    try:
        body = parent_job(made, deploy)
    except UserError:
        event("refused")
        return
    event("rendered")
    bodies = [body, one_of(body), prewarm_job(made, deploy)]
    for each in bodies:
        check_job(each)
        assert TOKEN not in json.dumps(each)
        for text in texts(each["Job"]):
            assert set(re.findall(r"\$\{[^}]*\}?", text)) <= REFERENCES, text
    task = body["Job"]["TaskGroups"][0]["Tasks"][0]
    for template in task.get("Templates", ()):
        assert re.fullmatch(TEMPLATE, template["EmbeddedTmpl"])
    assert not any("{{" in text for text in texts(task["Config"]))
    assert json.dumps(parent_job(made, deploy)) == json.dumps(body)


@given(st.text(max_size=600), st.integers(0, 999_999_999), st.integers(1, 999_999_999), words, words, words)
def test_a_dispatch_is_its_key_and_harmless(
    parameters: str, number: int, epoch: int, reason: str, request_id: str, secrets: str
) -> None:
    made = revision()
    key = ReplicaKey(PoolKey(made.id, parameters), number, epoch)

    body = dispatch_body(key, reason=reason, request_id=request_id, secrets=secrets, decision={"why": reason})

    assert key_of({"revision": made.id, **body["Meta"]}) == key
    assert set(body["Meta"]) == set(CHILD_META)
    assert all(isinstance(value, str) for value in body["Meta"].values())
    assert len(body["Meta"]["parameters_short"]) <= 512
    assert re.fullmatch(r"[0-9]{3,9}(-[a-z0-9-]*)?", body["IdPrefixTemplate"])
    assert len(body["IdPrefixTemplate"]) <= 28
