"""A job as the servers keep it: defaults filled in, implied constraints added, unknown keys dropped."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

from tests.support.fakes.nomad.state import Shape

SECOND: Final = 1_000_000_000
DAY: Final = 86_400 * SECOND

_JOB: Final[Shape] = {
    "Affinities": None,
    "AllAtOnce": False,
    "Constraints": None,
    "ConsulNamespace": "",
    "CreateIndex": 0,
    "Datacenters": ["*"],
    "DispatchIdempotencyToken": "",
    "Dispatched": False,
    "ID": "",
    "JobModifyIndex": 0,
    "Meta": None,
    "ModifyIndex": 0,
    "Multiregion": None,
    "Name": "",
    "Namespace": "default",
    "NodePool": "default",
    "NomadTokenID": "",
    "ParameterizedJob": None,
    "ParentID": "",
    "Payload": None,
    "Periodic": None,
    "Priority": 50,
    "Region": "global",
    "Spreads": None,
    "Stable": False,
    "Status": "",
    "StatusDescription": "",
    "Stop": False,
    "SubmitTime": 0,
    "TaskGroups": None,
    "Type": "service",
    "UI": None,
    "Update": None,
    "VaultNamespace": "",
    "Version": 0,
    "VersionTag": None,
}
_GROUP: Final[Shape] = {
    "Affinities": None,
    "Constraints": None,
    "Consul": None,
    "Count": None,
    "Disconnect": None,
    "EphemeralDisk": None,
    "MaxClientDisconnect": None,
    "MaxRunDuration": None,
    "Meta": None,
    "Migrate": None,
    "Name": "",
    "Networks": None,
    "PreventRescheduleOnLost": False,
    "ReschedulePolicy": None,
    "RestartPolicy": None,
    "Scaling": None,
    "Services": None,
    "ShutdownDelay": None,
    "Spreads": None,
    "StopAfterClientDisconnect": None,
    "Tasks": None,
    "Update": None,
    "Volumes": None,
}
_TASK: Final[Shape] = {
    "Actions": None,
    "Affinities": None,
    "Artifacts": None,
    "CSIPluginConfig": None,
    "Config": None,
    "Constraints": None,
    "Consul": None,
    "DispatchPayload": None,
    "Driver": "",
    "Env": None,
    "Identities": None,
    "Identity": None,
    "KillSignal": "",
    "KillTimeout": 5 * SECOND,
    "Kind": "",
    "Leader": False,
    "Lifecycle": None,
    "LogConfig": None,
    "Meta": None,
    "Name": "",
    "Resources": None,
    "RestartPolicy": None,
    "ScalingPolicies": None,
    "Schedule": None,
    "Secrets": None,
    "Services": None,
    "ShutdownDelay": 0,
    "Templates": None,
    "User": "",
    "Vault": None,
    "VolumeMounts": None,
}
RESOURCES: Final[Shape] = {
    "CPU": 100,
    "Cores": 0,
    "Devices": None,
    "DiskMB": 0,
    "IOPS": 0,
    "MemoryMB": 300,
    "MemoryMaxMB": 0,
    "NUMA": None,
    "Networks": None,
    "SecretsMB": 0,
}
_SERVICE: Final[Shape] = {
    "Address": "",
    "AddressMode": "auto",
    "CanaryMeta": None,
    "CanaryTags": None,
    "Checks": None,
    "Cluster": "default",
    "Connect": None,
    "EnableTagOverride": False,
    "Identity": None,
    "Kind": "",
    "Meta": None,
    "Name": "",
    "Namespace": "default",
    "OnUpdate": "require_healthy",
    "PortLabel": "",
    "Provider": "consul",
    "TaggedAddresses": None,
    "Tags": None,
    "TaskName": "",
    "Weights": None,
}
_CHECK: Final[Shape] = {
    "AddressMode": "",
    "Args": None,
    "Body": "",
    "CheckRestart": None,
    "Command": "",
    "Expose": False,
    "FailuresBeforeCritical": 0,
    "FailuresBeforeWarning": 0,
    "GRPCService": "",
    "GRPCUseTLS": False,
    "Header": None,
    "InitialStatus": "",
    "Interval": 0,
    "Method": "",
    "Name": "",
    "Notes": "",
    "OnUpdate": "require_healthy",
    "Path": "",
    "PortLabel": "",
    "Protocol": "",
    "SuccessBeforePassing": 0,
    "TLSServerName": "",
    "TLSSkipVerify": False,
    "TaskName": "",
    "Timeout": 0,
    "Type": "",
}
_TEMPLATE: Final[Shape] = {
    "ChangeMode": "restart",
    "ChangeScript": None,
    "ChangeSignal": "",
    "DestPath": "",
    "EmbeddedTmpl": "",
    "Envvars": False,
    "ErrMissingKey": False,
    "Gid": None,
    "LeftDelim": "{{",
    "Once": False,
    "Perms": "0644",
    "RightDelim": "}}",
    "SourcePath": "",
    "Splay": 5 * SECOND,
    "Uid": None,
    "VaultGrace": 0,
    "Wait": None,
}
_ARTIFACT: Final[Shape] = {
    "Chown": False,
    "GetterHeaders": None,
    "GetterInsecure": False,
    "GetterMode": "any",
    "GetterOptions": None,
    "GetterSource": "",
    "RelativeDest": "local/",
}
_IDENTITY: Final[Shape] = {
    "Audience": None,
    "ChangeMode": "",
    "ChangeSignal": "",
    "Env": False,
    "ExtraClaims": None,
    "File": False,
    "Filepath": "",
    "Name": "",
    "ServiceName": "",
    "TTL": 0,
}
_VAULT: Final[Shape] = {
    "AllowTokenExpiration": False,
    "ChangeMode": "restart",
    "ChangeSignal": "SIGHUP",
    "Cluster": "default",
    "DisableFile": False,
    "Env": True,
    "Namespace": "",
    "Role": "",
}
_DEVICE: Final[Shape] = {"Affinities": None, "Constraints": None, "Count": 1, "Name": ""}
_UPDATE: Final[Shape] = {
    "AutoPromote": False,
    "AutoRevert": False,
    "Canary": 0,
    "HealthCheck": "",
    "HealthyDeadline": 0,
    "MaxParallel": 0,
    "MinHealthyTime": 0,
    "ProgressDeadline": 0,
    "Stagger": 0,
}
_ROLLING: Final = {"MaxParallel": 1, "Stagger": 30 * SECOND}
_GROUP_UPDATE: Final = {
    "HealthCheck": "checks",
    "HealthyDeadline": 300 * SECOND,
    "MinHealthyTime": 10 * SECOND,
    "ProgressDeadline": 600 * SECOND,
}
_MIGRATE: Final = {
    "HealthCheck": "checks",
    "HealthyDeadline": 300 * SECOND,
    "MaxParallel": 1,
    "MinHealthyTime": 10 * SECOND,
}
_RESTART_BATCH: Final = {"Attempts": 3, "Interval": DAY}
_RESTART_SERVICE: Final = {"Attempts": 2, "Interval": 1800 * SECOND}
_RESTART: Final[Shape] = {"Delay": 15 * SECOND, "Mode": "fail", "RenderTemplates": False}
_RESCHEDULE_BATCH: Final[Shape] = {
    "Attempts": 1,
    "Delay": 5 * SECOND,
    "DelayFunction": "constant",
    "Interval": DAY,
    "MaxDelay": 0,
    "Unlimited": False,
}
_RESCHEDULE_SERVICE: Final[Shape] = {
    "Attempts": 0,
    "Delay": 30 * SECOND,
    "DelayFunction": "exponential",
    "Interval": 0,
    "MaxDelay": 3600 * SECOND,
    "Unlimited": True,
}


def filled(default: Mapping[str, Any], given: Mapping[str, Any] | None) -> Shape:
    """`default`'s keys, with what is given and not null."""
    chosen = {name: value for name, value in (given or {}).items() if name in default and value is not None}
    return copy.deepcopy({**default, **chosen})


def _each(default: Mapping[str, Any], given: list[Any] | None) -> list[Shape] | None:
    return [filled(default, item) for item in given] if given else None


def canonical(given: Mapping[str, Any]) -> Shape:
    """As `GET /v1/job/:id` would give it, but for what the servers assign."""
    job = filled(_JOB, given)
    job["Name"] = job["Name"] or job["ID"]
    kind = job["Type"]
    job["Update"] = filled(_UPDATE | (_ROLLING if kind in {"service", "system"} else {}), given.get("Update"))
    if job["UI"] is not None:
        links = [
            {"Label": link.get("Label", ""), "Url": link.get("URL", link.get("Url", ""))}
            for link in job["UI"].get("Links") or ()
        ]
        job["UI"] = {"Description": job["UI"].get("Description", ""), "Links": links or None}
    if job["ParameterizedJob"] is not None:
        shape = {"MetaOptional": None, "MetaRequired": None, "Payload": "optional"}
        job["ParameterizedJob"] = filled(shape, job["ParameterizedJob"])
    job["TaskGroups"] = [_group(group, job) for group in job["TaskGroups"] or ()] or None
    return job


def _group(given: Mapping[str, Any], job: Shape) -> Shape:
    group, kind = filled(_GROUP, given), job["Type"]
    batch = kind in {"batch", "sysbatch"}
    group["Count"] = 1 if group["Count"] is None else group["Count"]
    group["EphemeralDisk"] = filled({"Migrate": False, "SizeMB": 300, "Sticky": False}, group["EphemeralDisk"])
    group["RestartPolicy"] = filled(_RESTART | (_RESTART_BATCH if batch else _RESTART_SERVICE), group["RestartPolicy"])
    if kind in {"batch", "service"}:
        default = _RESCHEDULE_BATCH if kind == "batch" else _RESCHEDULE_SERVICE
        group["ReschedulePolicy"] = filled(default, group["ReschedulePolicy"])
    if not batch:
        group["Update"] = filled(
            _UPDATE | _ROLLING | _GROUP_UPDATE, given.get("Update") or job["Update"] | _GROUP_UPDATE
        )
    if kind == "service":
        group["Migrate"] = filled(_MIGRATE, group["Migrate"])
    for network in group["Networks"] or ():
        network.setdefault("Mode", "host")
        for port in network.get("DynamicPorts") or ():
            port.setdefault("HostNetwork", "default")
    if group["Disconnect"] is not None:
        shape = {"LostAfter": 0, "Reconcile": "best_score", "Replace": True, "StopOnClientAfter": None}
        group["Disconnect"] = filled(shape, group["Disconnect"])
    group["Affinities"] = _each({"LTarget": "", "Operand": "=", "RTarget": "", "Weight": 50}, group["Affinities"])
    group["Services"] = _services(group["Services"])
    group["Tasks"] = [_task(task, group) for task in group["Tasks"] or ()] or None
    group["Constraints"] = [*(group["Constraints"] or ()), *_implied(group)] or None
    return group


def _services(given: list[Any] | None) -> list[Shape] | None:
    services = _each(_SERVICE, given)
    for service in services or ():
        service["Checks"] = _each(_CHECK, service["Checks"])
    return services


def _task(given: Mapping[str, Any], group: Shape) -> Shape:
    task = filled(_TASK, given)
    task["LogConfig"] = filled({"Disabled": False, "MaxFileSizeMB": 10, "MaxFiles": 10}, task["LogConfig"])
    task["Resources"] = filled(RESOURCES, task["Resources"])
    task["Resources"]["Devices"] = _each(_DEVICE, task["Resources"]["Devices"])
    task["RestartPolicy"] = filled(group["RestartPolicy"], task["RestartPolicy"])
    task["Templates"] = _each(_TEMPLATE, task["Templates"])
    task["Artifacts"] = _each(_ARTIFACT, task["Artifacts"])
    task["Services"] = _services(task["Services"])
    task["Identity"] = filled(_IDENTITY | {"Audience": ["nomadproject.io"], "Name": "default"}, task["Identity"])
    identities = _each(_IDENTITY, task["Identities"]) or []
    if task["Vault"] is not None:
        task["Vault"] = filled(_VAULT, task["Vault"])
        if not any(identity["Name"].startswith("vault_") for identity in identities):
            hour = {"Audience": ["vault.io"], "Name": "vault_default", "TTL": 3600 * SECOND}
            identities.append(filled(_IDENTITY | hour, None))
    task["Identities"] = identities or None
    return task


def _implied(group: Shape) -> list[Shape]:
    """What using a feature asks of a node, in the order in which the servers add it."""
    found: list[tuple[str, str, str]] = []
    tasks = group["Tasks"] or ()
    if any(task["Vault"] for task in tasks):
        found.append(("${attr.vault.version}", "semver", ">= 0.6.1"))
    signals = sorted({task["KillSignal"] for task in tasks if task["KillSignal"]})
    if signals:
        found.append(("${attr.os.signals}", "set_contains", ",".join(signals)))
    services = [*(group["Services"] or ()), *(s for task in tasks for s in task["Services"] or ())]
    if any(service["Provider"] == "nomad" for service in services):
        found.append(("${attr.nomad.service_discovery}", "=", "true"))
        found.append(("${attr.nomad.version}", "semver", ">= 1.4.0"))
    if any(service["Provider"] == "consul" for service in services):
        found.append(("${attr.consul.version}", "semver", ">= 1.8.0"))
    if any(task["Vault"] for task in tasks):
        found.append(("${attr.nomad.version}", "semver", ">= 1.7.0-a"))
    known = {(c.get("LTarget"), c.get("Operand"), c.get("RTarget")) for c in group["Constraints"] or ()}
    return [
        {"LTarget": left, "Operand": operand, "RTarget": right}
        for left, operand, right in found
        if (left, operand, right) not in known
    ]
