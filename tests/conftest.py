"""Clean environment, time limits of each tier, leak checks, and a summary that says what was not there."""

from __future__ import annotations

import asyncio
import asyncio.runners
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from modalnomad.embedded.home import open_home

if TYPE_CHECKING:
    from tests.support.openbao import OpenBao

ROOT = Path(__file__).resolve().parent.parent
GUIDES = ROOT.parent / "shared" / "seeds" / "programs"

TIER_TIMEOUT = {"unit": 30, "property": 120, "contract": 60, "architecture": 120, "integration": 90, "acceptance": 300}
"""Seconds a test may take, unless it says otherwise with a `timeout` marker. They end what hangs. A unit test takes
milliseconds, and may meet a machine that stands still for some seconds all the same."""

SHARED_HOME = "TEST_SHARED_HOME"
"""The MODALNOMAD_HOME that all workers share, so that images are built once; made and removed by the first process."""

OWN_TEMPORARY = "TEST_TEMPORARY"
"""The folder of all `tmp_path`s, when it was made here."""

OPTIONAL = {
    "nomad": "contract tests against a real Nomad",
    "consul": "contract tests against a real Consul",
    "docker": "images built with docker",
    "chromium": "browser tests",
    "pasta": "traffic out of a replica's own network namespace",
    "terraform": "formats, tests and plans of Terraform's files by Terraform itself",
    "openssl": "certificates for tests of HTTPS",
}

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores SIGINT, and so would every process a test starts to interrupt it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the same of `nohup`

hypothesis.settings.register_profile("modalnomad", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("modalnomad"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "modalnomad")


def pytest_configure(config: pytest.Config) -> None:
    """Nothing of the user's own set-up may steer a test; loopback never goes through a proxy."""
    for name in list(os.environ):
        ours = name.startswith(("MODALNOMAD_", "MODAL_", "NOMAD_", "CONSUL_", "VAULT_", "BAO_"))
        if ours or name == "PYTHONDONTWRITEBYTECODE":
            del os.environ[name]
    for name in ("NO_PROXY", "no_proxy"):
        known = os.environ.get(name)
        os.environ[name] = ",".join(filter(None, [known, "localhost,127.0.0.1,::1,.localhost"]))
    if not hasattr(config, "workerinput"):
        # Both short, because the paths of Unix sockets are bounded.
        os.environ[SHARED_HOME] = tempfile.mkdtemp(prefix="mn-")
        # Marked as a home, whoever comes first: for nodes of clusters it is a store of theirs.
        open_home(Path(os.environ[SHARED_HOME]))
        config.add_cleanup(lambda: shutil.rmtree(os.environ[SHARED_HOME], ignore_errors=True))
        if config.option.basetemp is None:
            config.option.basetemp = os.environ[OWN_TEMPORARY] = tempfile.mkdtemp(prefix="mt-")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each tier's time limit."""
    for item in items:
        tier = item.path.relative_to(ROOT / "tests").parts[0]
        if tier in TIER_TIMEOUT and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIER_TIMEOUT[tier]))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that read the guides' programs: skipped without them, but a failure where they must be there."""
    if item.get_closest_marker("guides") is not None and not GUIDES.is_dir():
        reason = "the guides' programs are not beside this checkout (../shared/seeds)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The platform's default places lie in a folder of the test's own: nothing of the user's is read or written."""
    folder = tmp_path_factory.getbasetemp() / "user"
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))


@pytest.fixture(autouse=True)
def _no_task_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts a task ends it: tasks still running when a test's event loop is closed fail the test."""
    cancel_all = asyncio.runners._cancel_all_tasks  # type: ignore[attr-defined]

    def cancel_and_tell(loop: asyncio.AbstractEventLoop) -> None:
        left = [f"{task.get_name()}: {task.get_coro()}" for task in asyncio.all_tasks(loop)]
        cancel_all(loop)
        if left:
            pytest.fail("tasks left running:\n" + "\n".join(left), pytrace=False)

    monkeypatch.setattr(asyncio.runners, "_cancel_all_tasks", cancel_and_tell)


@pytest.fixture(scope="session")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """One real server for all tests of a process: each takes a `mount()` of its own, and leaves the server running."""
    from tests.support.openbao import OpenBao

    with OpenBao(tmp_path_factory.mktemp("openbao")) as server:
        yield server


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the tests had to do without, and checks outside pytest that failed."""
    from tests.support.terraform import plugins

    absent = {name: use for name, use in OPTIONAL.items() if shutil.which(name) is None}
    terminalreporter.section("not on this machine" if absent else "every optional program was there")
    for name, use in absent.items():
        terminalreporter.line(f"{name}: no {use}")
    if shutil.which("terraform") is not None and plugins() is None:
        terminalreporter.line("plug-ins of Terraform for nomad, vault and consul: nothing was planned or applied")
    if not GUIDES.is_dir():
        terminalreporter.line("../shared/seeds: the guides' programs were not run")
    if failed := os.environ.get("FAILED_CHECKS"):
        terminalreporter.section("checks that failed before the tests", red=True)
        terminalreporter.line(failed, red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Temporary files go; a failed check is a failed run, however well the tests went."""
    went_well = session.exitstatus == pytest.ExitCode.OK
    if went_well and not hasattr(session.config, "workerinput") and (made := os.environ.get(OWN_TEMPORARY)):
        shutil.rmtree(made, ignore_errors=True)  # kept after a failure, to look at
    if os.environ.get("FAILED_CHECKS") and went_well:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
