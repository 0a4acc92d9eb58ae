"""Jobs: registered, dispatched, stopped, planned."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import secrets
import time
from dataclasses import replace
from typing import Any, Final

from aiohttp import web

from tests.support.fakes.nomad.canonical import canonical
from tests.support.fakes.nomad.checking import check_change, check_index, check_place, check_types, problems, several
from tests.support.fakes.nomad.diffs import job_diff
from tests.support.fakes.nomad.reconciling import reconcile
from tests.support.fakes.nomad.scheduling import Scheduler, blocked_evaluation, plan_annotations
from tests.support.fakes.nomad.shapes import make_evaluation
from tests.support.fakes.nomad.state import JobKey, Refused, Shape, State, now
from tests.support.fakes.nomad.web import Ask, Routes, answer

PAYLOAD: Final = 16 * 1024
VOLATILE: Final = (
    "CreateIndex",
    "JobModifyIndex",
    "ModifyIndex",
    "Status",
    "StatusDescription",
    "SubmitTime",
    "Version",
    "VersionTag",
    "Stable",
    "NomadTokenID",
)
"""Not of the specification."""
_JOB: Final = r"/v1/job/(?P<id>.+)"
OVERSUBSCRIBED: Final = (
    'Memory oversubscription is not enabled; Task "{}.{}" memory_max value will be ignored. Update the Scheduler '
    "Configuration to allow oversubscription."
)


class JobsApi:
    """Changes of jobs."""

    def __init__(self, state: State, scheduler: Scheduler, routes: Routes) -> None:
        self._state, self._scheduler = state, scheduler
        routes.add("PUT POST", r"/v1/jobs", self.register)
        routes.add("PUT POST", r"/v1/validate/job", self.validate)
        routes.add("PUT POST", _JOB + "/dispatch", self.dispatch)
        routes.add("PUT POST", _JOB + "/plan", self.plan)
        routes.add("PUT POST", _JOB + "/evaluate", self.evaluate)
        routes.add("PUT POST DELETE", r"/v1/job/(?P<id>.+)/versions/(?P<tag>[^/]+)/tag", self.tag)

    def wire_last(self, routes: Routes) -> None:
        """What would take ids with a slash for its own."""
        routes.add("PUT POST", _JOB, self.register)
        routes.add("DELETE", _JOB, self.deregister)

    def _given(self, ask: Ask) -> tuple[dict[str, Any], Shape]:
        """Body and canonical job. Raises Refused."""
        body = ask.json()
        given = body.get("Job")
        if not isinstance(given, dict):
            raise Refused(400, "Job must be specified")
        if given.get("ID") is None:
            raise Refused(400, "Job ID hasn't been provided")
        if "id" in ask.parts and given["ID"] != ask.parts["id"]:
            raise Refused(400, "Job ID does not match name")
        check_types(given)
        if (given.get("Region") or ask.query("region") or "global") != "global":
            raise Refused(500, "No path to region")
        job = canonical(given | {"Namespace": given.get("Namespace") or ask.namespace})
        return body, job

    async def register(self, ask: Ask) -> web.StreamResponse:
        """`PUT /v1/jobs`."""
        body, job = self._given(ask)
        key = (job["Namespace"], job["ID"])
        if not ask.rights.can("register-job", job["Namespace"]):
            ask.must("submit-job", job["Namespace"])
        if wrong := problems(job):
            raise Refused(500, several(wrong))
        known = self._state.jobs.get(key)
        check_index(body, known)
        check_place(job, self._state)
        if known is not None:
            check_change(job, known)
        changed = known is None or specification(known) != specification(job)
        parent = job["ParameterizedJob"] is not None
        if not changed and parent and known is not None:
            return answer(ask, _registered(known["JobModifyIndex"], known["JobModifyIndex"]), known["JobModifyIndex"])
        with self._state.write() as change:
            fresh = job | {
                "SubmitTime": now(),
                "Status": "running"
                if parent
                else known["Status"]
                if known and known["Status"] != "dead"
                else "pending",
                "Version": known["Version"] + changed if known else 0,
                "NomadTokenID": "",
            }
            stored = change.job(fresh, "JobRegistered", version=changed)
            evaluation = ""
            if not parent:
                made = make_evaluation(stored, "job-register")
                evaluation = change.evaluation(made, "JobRegistered")["ID"]
            if body.get("Submission"):
                kept = body["Submission"] | {
                    "JobID": job["ID"],
                    "Namespace": job["Namespace"],
                    "JobModifyIndex": change.index,
                }
                self._state.submissions[(*key, stored["Version"])] = kept | {"Version": stored["Version"]}
        return answer(ask, _registered(change.index, stored["JobModifyIndex"], evaluation), change.index)

    async def deregister(self, ask: Ask) -> web.StreamResponse:
        """`DELETE /v1/job/:id`."""
        key = (ask.namespace, ask.parts["id"])
        ask.must("submit-job")
        known = self._state.jobs.get(key)
        if known is None:
            return answer(ask, _deregistered(0, 0, ""), 0)
        parent = known["ParameterizedJob"] is not None and not known["Dispatched"]
        with self._state.write() as change:
            if ask.flag("purge"):
                change.purged(key)
            else:
                more = {"Stop": True, "Version": known["Version"] + 1, "VersionTag": None}
                change.job(known | more | ({"Status": "dead"} if parent else {}), "JobDeregistered", version=True)
            evaluation = ""
            if not parent:
                made = make_evaluation(known | {"JobModifyIndex": change.index}, "job-deregister")
                evaluation = change.evaluation(made, "JobDeregistered")["ID"]
        return answer(ask, _deregistered(change.index, change.index, evaluation), change.index)

    window = 0.0
    """Seconds between the look for a token and the write: a real server does both without a lock, so that requests with
    one token at the same time start a child each (measured on 2.0.5: 23 of 25 pairs sent together, 8 of 25 sent 10 ms
    apart). 0: none at all."""
    together: asyncio.Barrier | None = None
    """So many at a time have looked before the first of them writes, however far apart they came."""

    async def dispatch(self, ask: Ask) -> web.StreamResponse:
        """`PUT /v1/job/:id/dispatch`. A token whose first child is there already starts no other."""
        key: JobKey = (ask.namespace, ask.parts["id"])
        body = ask.json()
        if body.get("JobID") not in {None, "", key[1]}:
            raise Refused(400, "Job ID does not match")
        payload = _payload(body)
        meta = body.get("Meta") or {}
        for value in meta.values():
            if not isinstance(value, str):
                where = "JobDispatchRequest.Meta of type string"
                raise Refused(400, f"json: cannot unmarshal number into Go struct field {where}")
        ask.must("dispatch-job")
        parent = self._state.jobs.get(key)
        if parent is None:
            raise Refused(500, "parameterized job not found")
        _dispatchable(parent, meta, payload)
        token = ask.query("idempotency_token") or body.get("IdempotencyToken") or ""
        if token:
            for child in self._state.children_of(key):
                if child["DispatchIdempotencyToken"] == token:
                    return answer(ask, _dispatched(child, self._state.index, ""), self._state.index)
        if self.window:
            await asyncio.sleep(self.window)
        if self.together is not None:
            await self.together.wait()
        prefix = body.get("IdPrefixTemplate") or ""
        name = f"{key[1]}/dispatch-{prefix + '-' if prefix else ''}{int(time.time())}-{secrets.token_hex(4)}"
        child = parent | {
            "ID": name,
            "Name": name,
            "ParentID": key[1],
            "Dispatched": True,
            "DispatchIdempotencyToken": token,
            "Meta": {**(parent["Meta"] or {}), **meta} or None,
            "Payload": body.get("Payload") or None,
            "Priority": body.get("Priority") or parent["Priority"],
            "Status": "pending",
            "SubmitTime": now(),
        }
        with self._state.write() as change:
            stored = change.job(child, "JobRegistered", version=True)
            evaluation = change.evaluation(make_evaluation(stored, "job-register"), "JobRegistered")
        return answer(ask, _dispatched(stored, change.index, evaluation["ID"]), change.index)

    async def plan(self, ask: Ask) -> web.StreamResponse:
        """`PUT /v1/job/:id/plan`."""
        body, job = self._given(ask)
        key = (job["Namespace"], job["ID"])
        if not ask.rights.can("plan-job", job["Namespace"]):
            ask.must("submit-job", job["Namespace"])
        if wrong := problems(job):
            raise Refused(500, several(wrong))
        check_place(job, self._state)
        known = self._state.jobs.get(key)
        if known is not None:
            check_change(job, known)
        changed = known is None or specification(known) != specification(job)
        index = known["JobModifyIndex"] if known else 0
        trial = job | {"Version": known["Version"] + changed if known else 0, "JobModifyIndex": index + changed}
        as_if = replace(self._state, jobs={**self._state.jobs, key: trial})
        _, changes = reconcile(as_if, key)
        outcome = self._scheduler.decide(trial, changes)
        evaluation = make_evaluation(trial, "job-register")
        diff = (
            job_diff(known, trial, {each.group["Name"]: each.counts for each in changes}) if body.get("Diff") else None
        )
        return answer(
            ask,
            {
                "Annotations": plan_annotations(changes),
                "CreatedEvals": [blocked_evaluation(evaluation, outcome)] if outcome.failed else None,
                "Diff": diff,
                "FailedTGAllocs": outcome.failed or None,
                "Index": index,
                "JobModifyIndex": index,
                "NextPeriodicLaunch": None,
                "Warnings": self._warnings(job),
            },
            index,
        )

    async def validate(self, ask: Ask) -> web.StreamResponse:
        """`PUT /v1/validate/job`: of the job by itself."""
        _, job = self._given(ask)
        ask.must("read-job", job["Namespace"])
        wrong = problems(job)
        return answer(
            ask,
            {
                "DriverConfigValidated": True,
                "Error": several(wrong) if wrong else "",
                "ValidationErrors": wrong or None,
                "Warnings": self._warnings(job),
            },
        )

    def _warnings(self, job: Shape) -> str:
        """Of a job that is fine."""
        if self._state.oversubscription:
            return ""
        tasks = [(group["Name"], task) for group in job["TaskGroups"] for task in group["Tasks"]]
        told = [OVERSUBSCRIBED.format(group, task["Name"]) for group, task in tasks if task["Resources"]["MemoryMaxMB"]]
        count = f"{len(told)} warning{'s' if len(told) > 1 else ''}:\n\n"
        return count + "\n".join(f"* {line}" for line in told) if told else ""

    async def evaluate(self, ask: Ask) -> web.StreamResponse:
        """`PUT /v1/job/:id/evaluate`."""
        job = self._state.jobs.get((ask.namespace, ask.parts["id"]))
        ask.must("submit-job")
        if job is None:
            raise Refused(500, "job not found")
        if job["ParameterizedJob"] is not None and not job["Dispatched"]:
            raise Refused(500, "can't evaluate parameterized job")
        with self._state.write() as change:
            evaluation = change.evaluation(make_evaluation(job, "job-register"))
        return answer(ask, _registered(change.index, job["JobModifyIndex"], evaluation["ID"]), change.index)

    async def tag(self, ask: Ask) -> web.StreamResponse:
        """`POST /v1/job/:id/versions/:tag/tag`."""
        key = (ask.namespace, ask.parts["id"])
        ask.must("submit-job")
        name, versions = ask.parts["tag"], self._state.versions.get(key, [])
        held = next((v for v in versions if (v["VersionTag"] or {}).get("Name") == name), None)
        if ask.method == "DELETE":
            if held is None:
                raise Refused(500, f'tag "{name}" not found on job "{key[1]}"')
            self._tagged(key, held["Version"], None)
            return answer(ask, _tag(None, self._state.index), self._state.index)
        body = ask.json()
        wanted = int(body.get("Version") or 0)
        if all(version["Version"] != wanted for version in versions):
            raise Refused(500, f'job "{key[1]}" version {wanted} not found')
        if held is not None and held["Version"] != wanted:
            raise Refused(500, f'tag "{name}" already exists on a different version of job "{key[1]}"')
        tag = {"Description": body.get("Description", ""), "Name": name, "TaggedTime": now()}
        self._tagged(key, wanted, tag)
        return answer(ask, _tag(tag, self._state.index), self._state.index)

    def _tagged(self, key: JobKey, version: int, tag: Shape | None) -> None:
        with self._state.write() as change:
            self._state.versions[key] = [
                each | {"VersionTag": tag} if each["Version"] == version else each for each in self._state.versions[key]
            ]
            self._state.tables["job_version"] = change.index
            if self._state.jobs[key]["Version"] == version:
                change.job(self._state.jobs[key] | {"VersionTag": tag}, "JobVersionTagged")


def specification(job: Shape) -> Shape:
    """Of a job: what a new version is made for."""
    return {name: value for name, value in job.items() if name not in VOLATILE}


def _payload(body: dict[str, Any]) -> bytes:
    text = body.get("Payload") or ""
    try:
        if len(text) % 4 or re.search(r"=[^=]", text):
            raise binascii.Error
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        place = text.find("=") + 2 if re.search(r"=[^=]", text) else 0
        raise Refused(400, f"illegal base64 data at input byte {place}") from None


def _dispatchable(parent: Shape, meta: dict[str, str], payload: bytes) -> None:
    """Raises Refused."""
    name, rules = parent["ID"], parent["ParameterizedJob"]
    if rules is None or parent["Dispatched"]:
        raise Refused(500, f'Specified job "{name}" is not a parameterized job')
    if parent["Stop"]:
        raise Refused(500, f'Specified job "{name}" is stopped')
    if len(payload) > PAYLOAD:
        raise Refused(500, f"Payload exceeds maximum size; {len(payload)} > {PAYLOAD}")
    if rules["Payload"] == "required" and not payload:
        raise Refused(500, "Payload is not provided but required by parameterized job")
    if rules["Payload"] == "forbidden" and payload:
        raise Refused(500, "Payload provided but forbidden by parameterized job")
    required, optional = set(rules["MetaRequired"] or ()), set(rules["MetaOptional"] or ())
    if unknown := sorted(set(meta) - required - optional):
        raise Refused(500, f"Dispatch request included unpermitted metadata keys: [{' '.join(unknown)}]")
    if missing := sorted(required - set(meta)):
        raise Refused(500, f"Dispatch did not provide required meta keys: [{' '.join(missing)}]")


def _registered(index: int, job_index: int, evaluation: str = "") -> Shape:
    return {
        "EvalCreateIndex": index if evaluation else 0,
        "EvalID": evaluation,
        "Index": index,
        "JobModifyIndex": job_index,
        "KnownLeader": False,
        "LastContact": 0,
        "NextToken": "",
        "Warnings": "",
    }


def _deregistered(index: int, job_index: int, evaluation: str) -> Shape:
    found = _registered(index, job_index, evaluation) | {"VolumeEvalID": "", "VolumeEvalIndex": 0}
    found["EvalCreateIndex"] = index
    del found["Warnings"]
    return found


def _dispatched(child: Shape, index: int, evaluation: str) -> Shape:
    return {
        "DispatchedJobID": child["ID"],
        "EvalCreateIndex": index if evaluation else 0,
        "EvalID": evaluation,
        "Index": index,
        "JobCreateIndex": child["CreateIndex"],
    }


def _tag(tag: Shape | None, index: int) -> Shape:
    named = tag or {"Name": "", "Description": "", "TaggedTime": 0}
    return named | {"Index": index, "KnownLeader": False, "LastContact": 0, "NextToken": ""}
