"""A home on a disk that is full, with the real command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.serve import command_environment

SCRIPT = """
set -u
mount -t tmpfs -o size=300k disk "$DISK" || { echo cannot mount; exit 77; }
command() { echo "--- $1"; shift; "$PYTHON" -m modalnomad "$@" 2>&1; echo "exit $?"; }
command first secret create db PASSWORD=old
mkdir "$DISK/home/artifacts"
head -c 20000 /dev/zero > "$DISK/home/artifacts/$DIGEST"
touch -d '2001-01-01' "$DISK/home/artifacts/$DIGEST"
cat /dev/zero > "$DISK/fill" 2> /dev/null
command secret secret create db "PASSWORD=$LONG" --force
command token token create
command list secret list --json
command prune prune --yes
command after secret create db "PASSWORD=$LONG" --force
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare")
def test_nothing_is_lost_on_a_full_disk_and_prune_makes_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    environment = command_environment(disk / "home") | {
        "DISK": str(disk),
        "PYTHON": sys.executable,
        "LONG": "x" * 9000,
        "DIGEST": "a" * 64,
    }
    # A mount of its own, which goes with its last process.
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode in {1, 77} and "--- first" not in done.stdout:
        pytest.skip(f"no mounts for users here: {done.stdout} {done.stderr}")
    parts = dict(part.split("\n", 1) for part in done.stdout.split("--- ")[1:])

    assert "exit 0" in parts["first"]
    for told in (parts["secret"], parts["token"]):
        assert "the disk is full" in told
        assert "free some space" in told
        assert "exit 1" in told
        assert "Traceback" not in told
    assert '"version": 1' in parts["list"]
    assert "1 removed, 20 kB freed" in parts["prune"], parts["prune"]
    assert "exit 0" in parts["prune"]
    assert "exit 0" in parts["after"]
    assert not os.listdir(disk)
