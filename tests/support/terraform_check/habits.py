"""What these modules must and must not do, beyond what the language and the providers ask: each rule says why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from tests.support.hcl import Block, Value, parse
from tests.support.repository import ROOT
from tests.support.terraform_check.model import Finding, Module, Placed, Schema, referred
from tests.support.terraform_check.shape import SECRET
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
    "consul_acl_binding_rule": ("bind_name", "selector"),
    "consul_acl_policy": ("name", "rules"),
    "consul_acl_role": ("name",),
    "nomad_acl_policy": ("name", "rules_hcl"),
    "nomad_namespace": ("name", "description"),
    "vault_jwt_auth_backend": ("path", "jwks_url"),
    "vault_jwt_auth_backend_role": (
        "role_name",
        "bound_audiences",
        "bound_claims",
        "claim_mappings",
        "token_policies",
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

PREEMPTION: Final = {f"{kind}_scheduler_enabled" for kind in ("system", "service", "batch", "sysbatch")}


def habits(module: Module, schema: Schema) -> Iterator[Finding]:
    """All findings of one module."""
    for rule in RULES:
        yield from rule(module)
    yield from sensitive_arguments(module, schema)


def tokens_are_asked_for(module: Module) -> Iterator[Finding]:
    """Secret ids lie in the state as plain text: only who says so gets them, and each plan says it again."""
    made = list(module.resources(*TOKENS))
    for placed in made:
        switches = [placed.block.arguments[name] for name in ("count", "for_each") if name in placed.block.arguments]
        if not any(("var", "create_tokens") in _heads(switch) for switch in switches):
            cure = "write `count = var.create_tokens ? 1 : 0`, or `for_each` likewise"
            yield placed.finding(placed.block.line, f"{placed.address} puts a secret into the state unasked", cure)
    warned = any(
        "create_tokens" in reference.parts for check in module.of("check") for reference in referred(check.block)
    )
    if made and not warned:
        cure = 'write `check "…" { assert { condition = !var.create_tokens … } }`'
        yield made[0].finding(made[0].block.line, f"no plan of {module.folder} warns of tokens in the state", cure)
    switch = module.variables.get("create_tokens")
    if switch is not None and ("default" not in switch.block.arguments or switch.block.arguments["default"].literal):
        yield switch.finding(switch.block.line, "tokens are made unless one says no", "write `default = false`")


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
    """Of resources: only in the write-only form. Of providers: never written out."""
    for placed in module.of("resource", "data", "provider"):
        entries = schema[placed.block.kind].get(placed.block.labels[0], {})
        for name, value in placed.block.arguments.items():
            entry = entries.get(name, "")
            marks = split(entry)[0] if isinstance(entry, str) else ""
            if not ("s" in marks or SECRET.search(name)) or "w" in marks or name.endswith("_wo"):
                continue
            if placed.block.kind != "provider":
                cure = "use its write-only form, or do it outside Terraform"
                yield placed.finding(value.line, f"secret `{name}` of {placed.address} would lie in the state", cure)
            elif not value.references:
                cure = "leave it out: the provider reads its environment"
                yield placed.finding(value.line, f"secret `{name}` of {placed.address} is written out", cure)


def secrets_outlive_mistakes(module: Module) -> Iterator[Finding]:
    """The end of the mount is the end of every secret in it."""
    for placed in module.resources("vault_mount"):
        if not any(_is_true(block, "prevent_destroy") for block in placed.block.named("lifecycle")):
            cure = "write `lifecycle { prevent_destroy = true }`"
            yield placed.finding(placed.block.line, f"{placed.address} can be destroyed with every secret in it", cure)


def environments_end_in_order(module: Module) -> Iterator[Finding]:
    """Nomad refuses to remove a namespace with jobs: by then their role and policy must still be there."""
    outliving = [placed.address for placed in module.resources("vault_jwt_auth_backend_role", "vault_policy")]
    for placed in module.resources("nomad_namespace") if "vault_policy" in " ".join(outliving) else ():
        for address in sorted(set(outliving) - _depends_on(placed)):
            cure = f"write `depends_on = [{address}, …]`"
            yield placed.finding(placed.block.line, f"{placed.address} could go after {address}, with jobs in it", cure)


def namespaces_of_others_are_left_alone(module: Module) -> Iterator[Finding]:
    """The provider takes over a namespace that is there without a word, and destroys it with the rest."""
    for placed in module.resources("nomad_namespace"):
        guards = [one for cycle in placed.block.named("lifecycle") for one in cycle.named("precondition")]
        if not any(one.parts[:2] == ("data", "nomad_namespace") for guard in guards for one in guard.references()):
            cure = "look with data `nomad_namespace`, and write a `precondition` that its description is ours"
            yield placed.finding(placed.block.line, f"{placed.address} would take over somebody else's namespace", cure)


def tokens_do_not_expire_by_terraform(module: Module) -> Iterator[Finding]:
    """Nomad gives "1h" back as "1h0m0s": up to 2.6.1 the provider then makes the token anew at each apply."""
    for placed in module.resources("nomad_acl_token"):
        if "expiration_ttl" in placed.block.arguments:
            line = placed.block.arguments["expiration_ttl"].line
            yield placed.finding(
                line, f"{placed.address} would be made anew at each apply", "leave `expiration_ttl` out"
            )


def jobs_start_when_all_is_there(module: Module) -> Iterator[Finding]:
    """A job that logs in to Vault before its role is there fails, and so does one without its policy."""
    needed = ("nomad_namespace", "nomad_acl_policy", "vault_jwt_auth_backend_role", "consul_acl_binding_rule")
    for placed in module.resources("nomad_job"):
        known = _depends_on(placed) | {".".join(one.parts[:2]) for one in referred(placed.block)}
        for other in module.resources(*needed):
            if other.address not in known:
                cure = f"write `depends_on = [{other.address}, …]`"
                yield placed.finding(placed.block.line, f"{placed.address} may start before {other.address}", cure)


def jobs_are_kept_running(module: Module) -> Iterator[Finding]:
    """Terraform compares the text of a job, not the cluster: one that was stopped by hand would stay so."""
    for placed in module.resources("nomad_job"):
        if not _is_true(placed.block, "rerun_if_dead"):
            cure = "write `rerun_if_dead = true`"
            yield placed.finding(placed.block.line, f"{placed.address} stays stopped when somebody stopped it", cure)


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


def preemption_is_whole(module: Module) -> Iterator[Finding]:
    """A key that is missing is written as false, so that system jobs lose preemption, and each plan shows it anew."""
    for placed in module.resources("nomad_scheduler_config"):
        given = placed.block.arguments.get("preemption_config")
        missing = PREEMPTION - set(given.items() if given is not None else ())
        if missing:
            line = placed.block.line if given is None else given.line
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
            given = placed.block.arguments.get(name)
            if given is not None and not given.references:
                cure = "take it from module `names`"
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
    namespaces_of_others_are_left_alone,
    tokens_do_not_expire_by_terraform,
    jobs_start_when_all_is_there,
    jobs_are_kept_running,
    jobs_are_given_what_they_know,
    roots_keep_the_order,
    preemption_is_whole,
    binding_rules_are_described,
    names_come_from_names,
)
