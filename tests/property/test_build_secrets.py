"""Whatever values a build step's secrets have, the step sees exactly them."""

from __future__ import annotations

import subprocess

from hypothesis import given, settings
from hypothesis import strategies as st

from modalnomad.hashicorp.docker.dockerfile import CARRIED, CARRIER, carrier

NAMES = st.from_regex(r"S_[A-Za-z0-9_]{1,8}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(0, 3), st.dictionaries(NAMES, VALUES, max_size=4), min_size=1, max_size=3))
def test_each_step_sees_its_own_values_to_the_byte(values: dict[int, dict[str, str]]) -> None:
    for number in range(4):
        seen = subprocess.run(
            ["/bin/sh", "-c", CARRIED, "modalnomad", str(number), "env", "-0"],
            env={CARRIER: carrier(values), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            check=True,
        ).stdout.split(b"\0")
        found = dict(line.split(b"=", 1) for line in seen if line.startswith((b"S_", CARRIER.encode())))
        assert found == {name.encode(): value.encode() for name, value in values.get(number, {}).items()}
