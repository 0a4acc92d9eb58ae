"""A server on a fixed port that all replicas share: one that is started ahead of a deploy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from modalnomad.settings import Settings
from modalnomad.wiring.control import control_call, open_stage
from tests.support.engines import eventually, within
from tests.support.fixed_port import fixed_port
from tests.support.ports import held_port
from tests.support.up import build, home_with, stop_app, up


async def test_a_check_right_after_app_stop_waits_for_the_port(tmp_path: Path) -> None:
    """Else it passed without a look at the new version, as the old one answered on the port; or failed on the port."""
    with held_port() as port:
        home = await asyncio.to_thread(home_with, tmp_path, fixed_port("shop", port, "one", tmp_path))
        u = up(home, env={"MODALNOMAD_EMBEDDED__NETWORK": "host"})
        try:
            await asyncio.to_thread(u.start)
            async with httpx.AsyncClient(timeout=60) as client, open_stage(Settings(home=home)) as stage:
                assert stage is not None
                last = asyncio.ensure_future(client.get(u.url("server") + "/slow"))
                await eventually((tmp_path / "begun").exists)
                record = await asyncio.to_thread(stop_app, home, "shop")
                await within(stage.served("shop", "main", record.serial))

                (tmp_path / "shop.py").write_text(fixed_port("shop", port, "two", tmp_path))
                candidate = await asyncio.to_thread(build, home, tmp_path / "shop.py")
                (new,) = candidate.revisions
                await stage.prepare(new)
                check = asyncio.ensure_future(stage.warm(new, "", 1))
                for _ in range(10):
                    alive = await control_call(Settings(home=home), "containers")
                    assert new.id not in {container["revision"] for container in alive}
                (tmp_path / "over").touch()
                assert (await last).text == "one"
                await within(check)
                assert (await client.get(f"http://127.0.0.1:{port}")).text == "two"
        finally:
            (tmp_path / "over").touch()
            await asyncio.to_thread(u.stop)
    assert not [e for e in u.events if e["event"] == "replica" and e["state"] == "failed"], u.output()
