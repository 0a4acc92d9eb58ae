"""What these modules must and must not do, beyond what the language and the providers ask: each rule says why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from tests.support.hcl import Block, Value, parse
from tests.support.repository import ROOT
from tests.support.terraform_check.arguments import META
from tests.support.terraform_check.model import Finding, Module, Placed, Schema, referred
from tests.support.terraform_check.shape import SECRET, given_out, sensitive
from tests.support.terraform_schema import split

TOKENS: Final = {
    "consul_acl_token",
    "nomad_acl_token",
    "vault_approle_auth_backend_role_secret_id",
    "vault_token",
}
"""Resources whose secret lies in the state, and in saved plans, as plain text."""

NEVER: Final[Mapping[str, Mapping[str, str]]] = {
    "resource": {
        "consul_keys": "values lie in the state",
        "vault_generic_secret": "values lie in the state: use `vault_kv_secret_v2` with `data_json_wo`",
    },
    "data": {
        "consul_acl_token_secret_id": "the secret lies in the state",
        "nomad_acl_token": "the secret lies in the state: use the ephemeral one",
        "nomad_variable": "values lie in the state: use the ephemeral one",
        "vault_generic_secret": "values lie in the state: use ephemeral `vault_kv_secret_v2`",
        "vault_kv_secret_v2": "values lie in the state: use the ephemeral one",
    },
}
"""What would bring a secret into the state by being there."""

SECRETS: Final[Mapping[str, Mapping[str, str]]] = {
    "nomad_variable": {"items": "items_wo"},
    "vault_kv_secret_v2": {"data_json": "data_json_wo"},
}
"""Arguments that are kept in the state, whether the provider marks them or not, and what is not kept."""

FROM_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "consul_acl_auth_method": ("name", "config_json"),
    "consul_acl_binding_rule": ("bind_name", "bind_type", "selector"),
    "consul_acl_policy": ("name", "description", "rules"),
    "consul_acl_role": ("name", "description", "policies"),
    "nomad_acl_policy": ("name", "description", "rules_hcl"),
    "nomad_namespace": ("name", "description"),
    "vault_jwt_auth_backend": ("path", "type", "jwks_url", "jwt_supported_algs"),
    "vault_jwt_auth_backend_role": (
        "role_name",
        "role_type",
        "bound_audiences",
        "bound_claims",
        "claim_mappings",
        "token_explicit_max_ttl",
        "token_period",
        "token_policies",
        "token_type",
        "user_claim",
    ),
    "vault_mount": ("path", "type", "options"),
    "vault_policy": ("name", "policy"),
}
"""Names, texts and claims: `modalnomad setup` makes the same ones from the same data file."""

ORDER: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "vault-platform": (("jwks_url", "nomad-platform"),),
    "consul-platform": (("jwks_url", "nomad-platform"),),
    "environment": (("mount", "vault-platform"), ("auth_mount", "vault-platform")),
    "router-job": (
        ("mount", "vault-platform"),
        ("auth_mount", "vault-platform"),
        ("after", "vault-platform"),
        ("after", "consul-platform"),
    ),
}
"""Of calls: argument, and the module that it must refer to."""

WAITED_FOR: Final[Mapping[str, tuple[str, ...]]] = {
    "consul-platform": ("role", "auth_method"),
    "environment": ("name",),
    "nomad-platform": ("jwks_url",),
    "vault-platform": ("mount", "auth_mount"),
}
"""Outputs by which other modules, and people, come after what is made."""

AFTER: Final[Mapping[str, tuple[str, ...]]] = {
    "consul_acl_binding_rule": ("consul_acl_role",),
    "nomad_job": ("nomad_namespace", "nomad_acl_policy", "vault_jwt_auth_backend_role", "consul_acl_binding_rule"),
}
KEPT_RUNNING: Final = {
    "rerun_if_dead": "stays stopped when somebody stopped it",
    "purge_on_destroy": "keeps its namespace from going",
}
LOOKED_AT: Final = {"nomad_namespace": "nomad_namespace", "nomad_acl_policy": "nomad_acl_policies"}
"""Of what a provider takes over: the data source that tells of it."""

SWITCH: Final = re.compile(r"var\.create_tokens \? .* : (0|\{\}|\[\]|toset\(\[\]\))", re.DOTALL)
NOT_KEPT: Final = {"lifecycle", "precondition", "postcondition"}
PREEMPTION: Final = {f"{kind}_scheduler_enabled" for kind in ("system", "service", "batch", "sysbatch")}


def habits(module: Module, modules: Mapping[str, Module], schema: Schema) -> Iterator[Finding]:
    """All findings of one module."""
    for rule in RULES:
        yield from rule(module)
    yield from sensitive_arguments(module, schema)
    yield from secrets_stay_out_of_resources(module, modules, schema)


def tokens_are_asked_for(module: Module) -> Iterator[Finding]:
    """Secret ids lie in the state as plain text: only who says so gets them, and each plan says it again."""
    made = list(module.resources(*TOKENS))
    for placed in made:
        switches = [placed.block.arguments[name] for name in ("count", "for_each") if name in placed.block.arguments]
        if not any(SWITCH.fullmatch(switch.text) for switch in switches):
            cure = "write `count = var.create_tokens ? 1 : 0`, or `for_each` likewise"
            yield placed.finding(placed.block.line, f"{placed.address} puts a secret into the state unasked", cure)
    warned = any(
        "condition" in block.arguments and block.arguments["condition"].text == "!var.create_tokens"
        for check in module.of("check")
        for block in check.block.named("assert")
    )
    if made and not warned:
        cure = 'write `check "…" { assert { condition = !var.create_tokens … } }`'
        yield made[0].finding(made[0].block.line, f"no plan of {module.folder} warns of tokens in the state", cure)
    switch = module.variables.get("create_tokens")
    if switch is not None and ("default" not in switch.block.arguments or switch.block.arguments["default"].literal):
        yield switch.finding(switch.block.line, "tokens are made unless one says no", "write `default = false`")
    for call in module.calls.values():
        asked = call.block.arguments.get("create_tokens")
        if asked is not None and asked.literal is not False and ("var", "create_tokens") not in _heads(asked):
            yield call.finding(asked.line, f"{call.address} makes tokens unasked", "leave `create_tokens` out")


def nothing_secret_in_state(module: Module) -> Iterator[Finding]:
    """A state is read by more people than a secret is meant for."""
    for placed in module.objects.values():
        name = placed.block.labels[0]
        if (why := NEVER.get(placed.block.kind, {}).get(name)) is not None:
            yield placed.finding(placed.block.line, f"{placed.address} is not to be used", why)
        for argument, instead in SECRETS.get(name, {}).items():
            if argument in placed.block.arguments:
                line = placed.block.arguments[argument].line
                yield placed.finding(line, f"`{argument}` of {placed.address} lies in the state", f"write `{instead}`")


def sensitive_arguments(module: Module, schema: Schema) -> Iterator[Finding]:
    """Of resources: only in the write-only form. Of that one, and of providers: never written out."""
    for placed in module.of("resource", "data", "provider"):
        entries = schema[placed.block.kind].get(placed.block.labels[0], {})
        for name, value, entry in _entries(placed.block, entries):
            marks = split(entry)[0]
            if not (set(marks) & {"s", "w"} or SECRET.search(name)):
                continue
            if placed.block.kind != "provider" and "w" not in marks:
                cure = "use its write-only form, or do it outside Terraform"
                yield placed.finding(value.line, f"secret `{name}` of {placed.address} would lie in the state", cure)
            elif not value.references:
                cure = "leave it out: the provider reads its environment"
                cure = cure if placed.block.kind == "provider" else "take it from a variable that is ephemeral"
                yield placed.finding(value.line, f"secret `{name}` of {placed.address} is written out", cure)


def _entries(block: Block, known: Mapping[str, Any]) -> Iterator[tuple[str, Value, str]]:
    """Arguments of a block and of those within, with what the schema says of each."""
    for name, value in block.arguments.items():
        if isinstance(entry := known.get(name, ""), str):
            yield name, value, entry
    for inner in block.blocks:
        if isinstance(entry := known.get(inner.kind), dict):
            yield from _entries(inner, entry["block"])


def secrets_stay_out_of_resources(module: Module, modules: Mapping[str, Module], schema: Schema) -> Iterator[Finding]:
    """What is marked sensitive, also by way of locals, goes into write-only arguments alone."""
    for placed in module.of("resource"):
        entries = schema["resource"].get(placed.block.labels[0], {})
        for block in placed.block.everywhere():
            for name, value in block.arguments.items() if block.kind not in NOT_KEPT else ():
                entry = entries.get(name, "") if block is placed.block else ""
                if name in META or (isinstance(entry, str) and "w" in split(entry)[0]):
                    continue
                for reference in given_out(value):
                    if sensitive(reference, module, modules, schema):
                        what = f"{reference} in `{name}` of {placed.address} would lie in the state"
                        yield placed.finding(value.line, what, "use a write-only argument, or do it outside Terraform")


def secrets_outlive_mistakes(module: Module) -> Iterator[Finding]:
    """The end of the mount is the end of every secret in it."""
    for placed in module.resources("vault_mount"):
        if not any(_is_true(block, "prevent_destroy") for block in placed.block.named("lifecycle")):
            cure = "write `lifecycle { prevent_destroy = true }`"
            yield placed.finding(placed.block.line, f"{placed.address} can be destroyed with every secret in it", cure)


def imports_change_nothing(module: Module) -> Iterator[Finding]:
    """The provider does not read a login's description back: what `setup` made would be written once more."""
    for placed in module.resources("vault_jwt_auth_backend"):
        cycles = placed.block.named("lifecycle")
        ignored = [one.arguments["ignore_changes"] for one in cycles if "ignore_changes" in one.arguments]
        if "description" in placed.block.arguments and not any(("description",) in _heads(one) for one in ignored):
            cure = "write `lifecycle { ignore_changes = [description] }`"
            yield placed.finding(placed.block.line, f"{placed.address} changes when it is imported", cure)


def environments_end_in_order(module: Module) -> Iterator[Finding]:
    """Nomad refuses to remove a namespace with jobs: by then their role and policy must still be there."""
    outliving = [placed.address for placed in module.resources("vault_jwt_auth_backend_role", "vault_policy")]
    for placed in module.resources("nomad_namespace") if "vault_policy" in " ".join(outliving) else ():
        for address in sorted(set(outliving) - _depends_on(placed)):
            cure = f"write `depends_on = [{address}, …]`"
            yield placed.finding(placed.block.line, f"{placed.address} could go after {address}, with jobs in it", cure)


def things_of_others_are_left_alone(module: Module) -> Iterator[Finding]:
    """The provider takes over what is there without a word, and destroys it with the rest."""
    for placed in module.resources(*LOOKED_AT):
        kind = placed.block.labels[0]
        guards = [one for cycle in placed.block.named("lifecycle") for one in cycle.named("precondition")]
        said = [guard.arguments["condition"] for guard in guards if "condition" in guard.arguments]
        read = [one.parts for condition in said for one in condition.references]
        if not any(parts[:2] == ("data", LOOKED_AT[kind]) and "description" in parts for parts in read):
            cure = f"look with data `{LOOKED_AT[kind]}`, and write a `precondition` that its description is ours"
            yield placed.finding(placed.block.line, f"{placed.address} would take over somebody else's", cure)


def tokens_do_not_expire_by_terraform(module: Module) -> Iterator[Finding]:
    """Nomad gives "1h" back as "1h0m0s": up to 2.6.1 the provider then makes the token anew at each apply."""
    for placed in module.resources("nomad_acl_token"):
        if "expiration_ttl" in placed.block.arguments:
            line = placed.block.arguments["expiration_ttl"].line
            yield placed.finding(
                line, f"{placed.address} would be made anew at each apply", "leave `expiration_ttl` out"
            )


def nothing_starts_too_early(module: Module) -> Iterator[Finding]:
    """A job that logs in to Vault before its role is there fails; who logs in to Consul before that gets nothing."""
    for placed in module.resources(*AFTER):
        known = _depends_on(placed) | {".".join(one.parts[:2]) for one in referred(placed.block)}
        for other in module.resources(*AFTER[placed.block.labels[0]]):
            if other.address not in known:
                cure = f"write `depends_on = [{other.address}, …]`"
                yield placed.finding(placed.block.line, f"{placed.address} may start before {other.address}", cure)


def jobs_are_kept_running(module: Module) -> Iterator[Finding]:
    """Terraform compares the text of a job, not the cluster; and its policy is given to whom `job_acl` names alone."""
    for placed in module.resources("nomad_job"):
        for name, why in KEPT_RUNNING.items():
            if not _is_true(placed.block, name):
                yield placed.finding(placed.block.line, f"{placed.address} {why}", f"write `{name} = true`")
        for policy in module.resources("nomad_acl_policy"):
            if not any(policy.block.named("job_acl")):
                cure = "write `job_acl { … }`"
                yield policy.finding(policy.block.line, f"{policy.address} gives {placed.address} no rights", cure)


def jobs_are_given_what_they_know(module: Module) -> Iterator[Finding]:
    """Nomad refuses a job with a variable that its jobspec does not declare: at the apply, not before."""
    for placed in module.resources("nomad_job"):
        spec = placed.block.arguments.get("jobspec")
        path = re.search(r"\$\{path\.module\}/([^\"]+)", spec.text) if spec is not None else None
        file = ROOT / module.folder / path[1] if path is not None else None
        if file is None or not file.is_file():
            yield placed.finding(
                placed.block.line, f"{placed.address} has no jobspec of this checkout", "name its file"
            )
            continue
        known = {block.labels[0] for block in parse(file.read_text("utf-8")).named("variable")}
        for given in placed.block.named("hcl2"):
            for name, value in _elements(given.arguments.get("vars"), module).items():
                if name not in known:
                    what = f"{placed.address} gives `{name}`, which {file.name} does not know"
                    yield placed.finding(value.line, what, f"there are {', '.join(sorted(known))}")


def _elements(value: Value | None, module: Module) -> Mapping[str, Value]:
    """Of an object: written out, or in locals that are gone through."""
    found = dict(value.items()) if value is not None else {}
    for reference in value.references if value is not None else ():
        if reference.parts[0] == "local" and len(reference.parts) == 2 and reference.parts[1] in module.locals:
            found |= module.locals[reference.parts[1]][1].items()
    return found


def roots_keep_the_order(module: Module) -> Iterator[Finding]:
    """References are the order: Vault reads Nomad's keys when it is told of them, tasks log in to what is there."""
    by_kind: dict[str, set[str]] = {}
    for name, call in module.calls.items():
        by_kind.setdefault((module.called(call) or "").rpartition("/")[2], set()).add(name)
    for name, call in module.calls.items() if module.is_root else ():
        kind = (module.called(call) or "").rpartition("/")[2]
        for argument, before in ORDER.get(kind, ()):
            value = call.block.arguments.get(argument)
            known = {one.parts[1] for one in value.references if one.parts[0] == "module"} if value else set()
            if before in by_kind and not known & by_kind[before]:
                cure = f"give it something of module `{min(by_kind[before])}`"
                line = call.block.line if value is None else value.line
                yield call.finding(line, f"`{argument}` of module `{name}` does not wait for {before}", cure)


def outputs_keep_the_order(module: Module) -> Iterator[Finding]:
    """What others wait for is known only when the things themselves are there."""
    for name in WAITED_FOR.get(module.folder.rpartition("/")[2], ()) if not module.is_root else ():
        output = module.outputs.get(name)
        read = {".".join(one.parts[:2]) for one in referred(output.block)} if output is not None else set()
        if output is not None and not read & {one.address for one in module.of("resource")}:
            cure = "write `depends_on = [nomad_acl_policy.this]`, or what it is"
            yield output.finding(output.block.line, f"output `{name}` waits for nothing", cure)


def preemption_is_whole(module: Module) -> Iterator[Finding]:
    """A key that is missing is written as false, so that system jobs lose preemption, and each plan shows it anew."""
    for placed in module.resources("nomad_scheduler_config"):
        given = placed.block.arguments.get("preemption_config")
        keys = dict(given.items()) if given is not None else {}
        missing = PREEMPTION - {key for key, value in keys.items() if value.literal is not None}
        line = placed.block.line if given is None else given.line
        for key in sorted(keys.keys() - PREEMPTION):
            yield placed.finding(line, f"preemption_config of {placed.address} knows no {key}", "write the four keys")
        if missing:
            what = f"preemption_config of {placed.address} lacks {', '.join(sorted(missing))}"
            yield placed.finding(line, what, "write all four keys")


def binding_rules_are_described(module: Module) -> Iterator[Finding]:
    """Without a description each plan shows one to remove."""
    for placed in module.resources("nomad_acl_binding_rule", "consul_acl_binding_rule"):
        text = placed.block.arguments.get("description")
        if text is None or text.literal in {"", None}:
            what = f"{placed.address} has no description, and each plan would show it anew"
            yield placed.finding(placed.block.line, what, "write `description = …`")


def names_come_from_names(module: Module) -> Iterator[Finding]:
    """What is written twice differs one day: `modalnomad setup` and Terraform make the same objects."""
    if module.is_root or module.folder.endswith("/names"):
        return
    for placed in module.blocks:
        for block in placed.block.everywhere():
            for name, value in block.arguments.items():
                if name in {"description", "error_message"} and placed.block.kind in {"variable", "output", "check"}:
                    continue
                if _mentions(value, "modalnomad-"):
                    cure = "take it from module `names`"
                    yield placed.finding(value.line, f"`{name}` of {placed.address} names something by itself", cure)
    for placed in module.resources(*FROM_NAMES):
        for name in FROM_NAMES[placed.block.labels[0]]:
            given, cure = placed.block.arguments.get(name), "take it from module `names`"
            if given is None:
                yield placed.finding(placed.block.line, f"{placed.address} has no `{name}`, which setup writes", cure)
            elif not {one.parts[0] for one in given.references} & {"module", "local", "each"}:
                yield placed.finding(given.line, f"`{name}` of {placed.address} is written out", cure)


def _mentions(value: Value, word: str) -> bool:
    return word in value.text


def _heads(value: Value) -> set[tuple[str, ...]]:
    return {reference.parts[:2] for reference in value.references}


def _is_true(block: Block, name: str) -> bool:
    return name in block.arguments and block.arguments[name].literal is True


def _depends_on(placed: Placed) -> set[str]:
    value = placed.block.arguments.get("depends_on")
    return {".".join(reference.parts[:2]) for reference in value.references} if value is not None else set()


RULES: Final[tuple[Callable[[Module], Iterator[Finding]], ...]] = (
    tokens_are_asked_for,
    nothing_secret_in_state,
    secrets_outlive_mistakes,
    environments_end_in_order,
    imports_change_nothing,
    things_of_others_are_left_alone,
    tokens_do_not_expire_by_terraform,
    nothing_starts_too_early,
    jobs_are_kept_running,
    jobs_are_given_what_they_know,
    roots_keep_the_order,
    outputs_keep_the_order,
    preemption_is_whole,
    binding_rules_are_described,
    names_come_from_names,
)
