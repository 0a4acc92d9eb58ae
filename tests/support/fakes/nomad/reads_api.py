"""What is read of jobs, evaluations and allocations; all of it can be waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from tests.support.fakes.nomad.acl import DENIED
from tests.support.fakes.nomad.shapes import TRANSITION, allocation_stub, job_stub, make_evaluation
from tests.support.fakes.nomad.state import JobKey, Refused, Shape, State
from tests.support.fakes.nomad.web import Ask, Page, Routes, answer, blocking, page

_JOB: Final = r"/v1/job/(?P<id>.+)"
_UUID: Final = "index error: UUID must be 36 characters"
_EVALUATION: Final[Shape] = {
    "BlockedEval": "",
    "ClassEligibility": None,
    "FailedTGAllocs": None,
    "PreviousEval": "",
    "QueuedAllocations": None,
    "StatusDescription": "",
}
"""What an evaluation may lack, for filters."""


class ReadsApi:
    """Lists and single objects."""

    def __init__(self, state: State, routes: Routes) -> None:
        self._state = state
        routes.add("GET", r"/v1/jobs", self.jobs)
        routes.add("GET", r"/v1/allocations", self.allocations)
        routes.add("GET", r"/v1/evaluations", self.evaluations)
        routes.add("GET", r"/v1/evaluation/(?P<id>[^/]*)", self.evaluation)
        routes.add("PUT POST", r"/v1/allocation/(?P<id>[^/]*)/stop", self.stop)
        routes.add("GET", r"/v1/allocation/(?P<id>[^/]*)", self.allocation)
        for name, read in (
            ("allocations", self._job_allocations),
            ("evaluations", self._job_evaluations),
            ("summary", self._job_summary),
            ("versions", self._job_versions),
            ("submission", self._job_submission),
            ("scale", self._job_scale),
        ):
            routes.add("GET", f"{_JOB}/{name}", self._of_job(read))
        for name in ("dispatch", "plan", "evaluate"):
            routes.add("", f"{_JOB}/{name}", self.jobs)  # another method is wrong, and no job's id

    def wire_last(self, routes: Routes) -> None:
        """What would take ids with a slash for its own."""
        routes.add("GET", _JOB, self._of_job(self._job))

    def _index(self, *tables: str) -> int:
        return max(self._state.tables[table] for table in tables)

    async def jobs(self, ask: Ask) -> web.StreamResponse:
        """`GET /v1/jobs`."""

        def read() -> tuple[int, Page]:
            seen = ask.visible("list-jobs")
            prefix, meta = ask.query("prefix"), ask.flag("meta")
            items = [j for (ns, name), j in self._state.jobs.items() if seen(ns) and name.startswith(prefix)]
            found = page(ask, items, _job_token, lambda job: job_stub(job, self._state, meta=meta))
            return self._index("jobs", "job_summary"), found

        return await blocking(ask, self._state, read)

    async def allocations(self, ask: Ask) -> web.StreamResponse:
        """`GET /v1/allocations`."""

        def read() -> tuple[int, Page]:
            seen = ask.visible("read-job")
            prefix, resources = ask.query("prefix"), ask.flag("resources")
            items = [a for a in self._state.allocations.values() if seen(a["Namespace"]) and a["ID"].startswith(prefix)]
            found = page(
                ask,
                items,
                lambda alloc: str(alloc["ID"]),
                lambda alloc: allocation_stub(alloc, resources=resources),
                tested=lambda alloc: allocation_stub(alloc, resources=True) | alloc,
            )
            return self._index("allocs"), found

        return await blocking(ask, self._state, read)

    async def evaluations(self, ask: Ask) -> web.StreamResponse:
        """`GET /v1/evaluations`."""

        def read() -> tuple[int, Page]:
            seen = ask.visible("read-job")
            wanted = {"JobID": ask.query("job"), "Status": ask.query("status")}
            items = [
                e
                for e in self._state.evaluations.values()
                if seen(e["Namespace"]) and all(not v or e[name] == v for name, v in wanted.items())
            ]
            found = page(ask, items, lambda e: str(e["ID"]), lambda e: e, tested=lambda e: _EVALUATION | e)
            return self._index("evals"), found

        return await blocking(ask, self._state, read)

    async def evaluation(self, ask: Ask) -> web.StreamResponse:
        """`GET /v1/evaluation/:id`: the right is asked of the namespace of the request, not of the evaluation."""
        ask.must("read-job")
        identifier = ask.parts["id"]
        if len(identifier) != 36:
            raise Refused(500, f"failed to lookup eval: eval lookup failed: {_UUID}")

        def read() -> tuple[int, Any]:
            found = self._state.evaluations.get(identifier)
            if found is None:
                return self._index("evals"), Refused(404, "eval not found")
            if not ask.rights.can("read-job", found["Namespace"]):
                raise DENIED
            return found["ModifyIndex"], found

        return await blocking(ask, self._state, read)

    async def allocation(self, ask: Ask) -> web.StreamResponse:
        """`GET /v1/allocation/:id`: one of a namespace that may not be read is unknown, with a 500."""
        identifier = ask.parts["id"]
        if len(identifier) != 36:
            raise Refused(500, f"alloc lookup failed: {_UUID}")

        def read() -> tuple[int, Any]:
            found = self._state.allocations.get(identifier)
            if found is None:
                return self._index("allocs"), Refused(404, "alloc not found")
            if not ask.rights.can("read-job", found["Namespace"]):
                raise Refused(500, f'Unknown allocation "{identifier}"')
            return found["ModifyIndex"], found

        return await blocking(ask, self._state, read)

    async def stop(self, ask: Ask) -> web.StreamResponse:
        """`PUT /v1/allocation/:id/stop`: stopped, and replaced."""
        alloc = self._state.allocations.get(ask.parts["id"])
        if alloc is None:
            raise Refused(404, "alloc not found")
        ask.must("alloc-lifecycle", alloc["Namespace"])
        with self._state.write() as change:
            more = {"Migrate": True, "NoShutdownDelay": ask.flag("no_shutdown_delay"), "Reschedule": False}
            change.allocation(alloc | {"DesiredTransition": TRANSITION | more}, "AllocationUpdateDesiredStatus")
            made = change.evaluation(make_evaluation(alloc["Job"], "alloc-stop"), "AllocationUpdateDesiredStatus")
        return answer(ask, {"EvalID": made["ID"], "Index": change.index}, change.index)

    # --- of one job ----------------------------------------------------------------------------------------------

    def _of_job(self, read: Callable[[Ask, JobKey, Shape | None], tuple[int, Any]]) -> Any:
        async def handler(ask: Ask) -> web.StreamResponse:
            key = (ask.namespace, ask.parts["id"])
            ask.must("read-job")
            return await blocking(ask, self._state, lambda: read(ask, key, self._state.jobs.get(key)))

        return handler

    def _job(self, ask: Ask, key: JobKey, job: Shape | None) -> tuple[int, Any]:
        if job is None:
            return self._index("jobs"), Refused(404, "job not found")
        return job["ModifyIndex"], job

    def _job_allocations(self, ask: Ask, key: JobKey, job: Shape | None) -> tuple[int, Any]:
        found = [allocation_stub(alloc, resources=False) for alloc in self._state.allocations_of(key)]
        return self._index("allocs"), sorted(found, key=lambda alloc: -int(alloc["CreateIndex"]))

    def _job_evaluations(self, ask: Ask, key: JobKey, job: Shape | None) -> tuple[int, Any]:
        found = self._state.evaluations_of(key)
        return self._index("evals"), sorted(found, key=lambda each: -int(each["CreateIndex"]))

    def _job_summary(self, ask: Ask, key: JobKey, job: Shape | None) -> tuple[int, Any]:
        if job is None:
            return self._index("job_summary"), Refused(404, "job not found")
        found = self._state.summary(key)
        return found["ModifyIndex"], found

    def _job_versions(self, ask: Ask, key: JobKey, job: Shape | None) -> tuple[int, Any]:
        versions = self._state.versions.get(key)
        if not versions:
            return self._index("jobs"), Refused(404, "job versions not found")
        index = max(version["ModifyIndex"] for version in versions)
        found = {"Diffs": None, "Index": index, "KnownLeader": True, "LastContact": 0, "NextToken": ""}
        return index, found | {"Versions": versions}

    def _job_submission(self, ask: Ask, key: JobKey, job: Shape | None) -> tuple[int, Any]:
        text = ask.query("version")
        if not text.isdigit():
            raise Refused(400, "unable to parse version query parameter")
        found = self._state.submissions.get((*key, int(text)))
        if found is None:
            return self._index("jobs"), Refused(404, "job source not found")
        shape = {"Format": "", "Source": "", "VariableFlags": None, "Variables": ""}
        return found["JobModifyIndex"], shape | found

    def _job_scale(self, ask: Ask, key: JobKey, job: Shape | None) -> tuple[int, Any]:
        if job is None:
            return self._index("jobs"), Refused(404, "job not found")
        alive = [a for a in self._state.allocations_of(key) if a["ClientStatus"] in {"pending", "running"}]
        groups = {}
        for group in job["TaskGroups"]:
            own = [alloc["ClientStatus"] for alloc in alive if alloc["TaskGroup"] == group["Name"]]
            groups[group["Name"]] = {
                "Desired": group["Count"],
                "Events": None,
                "Healthy": 0,
                "Placed": len(own),
                "Running": own.count("running"),
                "Unhealthy": 0,
            }
        found = {"JobCreateIndex": job["CreateIndex"], "JobID": job["ID"], "JobModifyIndex": job["ModifyIndex"]}
        return job["ModifyIndex"], found | {"JobStopped": job["Stop"], "Namespace": key[0], "TaskGroups": groups}


def _job_token(job: Shape) -> str:
    return f"{job['Namespace']}.{job['ID']}"


def collectable(state: State, key: JobKey) -> bool:
    """`system gc` may take the job: it is dead, and nothing of it is alive."""
    job = state.jobs[key]
    parent = job["ParameterizedJob"] is not None and not job["Dispatched"]
    ends = job["Stop"] or (job["Type"] in {"batch", "sysbatch"} and not parent)
    if job["Status"] != "dead" or not ends or job["VersionTag"] is not None:
        return False
    terminal = all(alloc["ClientStatus"] in {"complete", "failed", "lost"} for alloc in state.allocations_of(key))
    return terminal and all(each["Status"] not in {"pending", "blocked"} for each in state.evaluations_of(key))
