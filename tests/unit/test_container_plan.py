"""What chains mean in a container, and the Dockerfiles that come of them."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from modalnomad.deploy.bundle import make_bundle
from modalnomad.deploy.container_plan import ContainerPlan, plan_container
from modalnomad.deploy.images import check_images
from modalnomad.hashicorp.docker import dockerfile
from modalnomad.hashicorp.docker.context import DOCKERFILE, input_digest, write_context
from modalnomad.hashicorp.docker.dockerfile import Dockerfile, carrier, make_dockerfile
from modalnomad.model.errors import UserError
from modalnomad.model.manifest import Function, Image, ImageStep, Mount, Source
from modalnomad.model.recipe import INDEX, Call, Files, Install, OwnBase, Packages, Recipe, Run

HEAD = """\
FROM base:1
COPY .modalnomad/setup.sh /opt/modalnomad/setup.sh
COPY .modalnomad/sdk /opt/modalnomad/sdk
RUN ["/bin/sh", "/opt/modalnomad/setup.sh"]
ENV PATH=/opt/modalnomad/env/bin:$PATH VIRTUAL_ENV=/opt/modalnomad/env
RUN ["/opt/modalnomad/env/bin/python", "-I", "-m", "compileall", "-q", "/opt/modalnomad/sdk"]
"""


def step(kind: str, files: tuple[str, ...] = (), **arguments: Any) -> ImageStep:
    return ImageStep(kind=kind, arguments=arguments, files=files, where="app.py:3")


def function(image: Image) -> Function:
    return Function(tag="f", where="app.py:5", image=image)


def planned(*steps: ImageStep, base: str = "debian_slim", **given: Any) -> ContainerPlan:
    return plan_container(Image(base=base, base_arguments=given, steps=steps, where="app.py:1"))


def written(*instructions: Any, **given: Any) -> Dockerfile:
    recipe = Recipe(instructions=instructions, **({"python": "3.12"} | given))
    return make_dockerfile(recipe, base="base:1", python_base="tools:1", sdk={"__main__.py": b""})


def of_plan(plan: ContainerPlan) -> list[str]:
    """The Dockerfile's lines for the user's steps."""
    assert plan.packages.problems == []
    made = written(*plan.before, Install("PINNED"), *plan.after)
    return made.text.removeprefix(HEAD).splitlines()


def test_a_chain_keeps_the_order_of_its_steps() -> None:
    plan = planned(
        step("apt_install", packages=["libpq-dev", "git=1:2.39"]),
        step("env", vars={"A": 'x "y" $z \\', "B": "1"}),
        step("pip_install", packages=["six"]),
        step("workdir", path="srv"),
        step("run_commands", commands=["make all\nexit 0"], env={"C": "d e"}),
        step("shell", commands=["/bin/bash", "-euc"]),
        step("run_commands", commands=["type -a x"]),
        step("entrypoint", commands=["/entry"]),
        step("dockerfile_commands", commands=["USER nobody"], build_args={"WHO": "me"}),
    )
    lines = of_plan(plan)
    assert lines[0].startswith('RUN ["/bin/sh", "-c", "apt-get update && ')
    assert " libpq-dev git=1:2.39 " in lines[0]
    assert lines[1:3] == ['ENV A="x \\"y\\" \\$z \\\\"', 'ENV B="1"']
    assert lines[3].startswith("COPY .modalnomad/install/")
    assert '"--no-deps"' in lines[4]
    assert lines[5:] == [
        "WORKDIR /root/srv",
        'RUN ["env", "C=d e", "/bin/sh", "-c", "make all\\nexit 0"]',
        'SHELL ["/bin/bash", "-euc"]',
        'RUN ["/bin/bash", "-euc", "type -a x"]',
        'ENTRYPOINT ["/entry"]',
        "ARG WHO",
        "USER nobody",
    ]
    assert plan.arguments == {"WHO": "me"}
    assert plan.workdir == "/root/srv"


def test_without_packages_of_its_own_the_runners_come_first_so_that_images_share_them() -> None:
    plan = planned(step("run_commands", commands=["true"]))
    assert (plan.before, plan.after) == ([], [Run("true")])


def test_debian_packages_are_there_before_pythons_unless_a_command_stands_between() -> None:
    first, later = step("pip_install", packages=["six"]), step("apt_install", packages=["gcc"])
    assert planned(first, later).before == [Packages(("gcc",))]
    command = step("run_commands", commands=["add a source"])
    assert planned(first, command, later).after == [Run("add a source"), Packages(("gcc",))]


def test_a_registrys_image_runs_as_root_and_may_bring_a_python() -> None:
    plan = planned(base="from_registry", tag="cuda:12", add_python="3.11", setup_dockerfile_commands=["RUN setup"])
    assert (plan.base, plan.packages.python, plan.setup) == ("cuda:12", "3.11", ("RUN setup",))
    made = written(base="base:1", python="3.11", setup=plan.setup)
    lines = made.text.splitlines()
    assert lines[0] == "FROM tools:1 AS modalnomad-python"
    assert lines[3:7] == [
        "FROM base:1",
        "USER root",
        "RUN setup",
        "COPY --from=modalnomad-python /opt/modalnomad/pythons /opt/modalnomad/pythons",
    ]
    assert 'RUN ["/bin/sh", "/opt/modalnomad/setup.sh", "/opt/modalnomad/pythons/chosen"]' in lines
    assert made.images == ("base:1", "tools:1")
    assert planned(base="from_registry", tag="cuda:12").packages.python is None


def test_a_dockerfile_of_the_users_comes_with_its_context(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM x\n")
    (tmp_path / "kept").write_text("")
    (tmp_path / "left.log").write_text("")
    (tmp_path / ".dockerignore").write_text("# none\n*.log\n")
    plan = planned(base="from_dockerfile", path=str(tmp_path / "Dockerfile"), build_args={"A": "b"})
    assert isinstance(plan.base, OwnBase)
    assert (plan.base.dockerfile, plan.base.arguments) == ("FROM x\n", {"A": "b"})
    assert set(plan.base.context) == {"Dockerfile", "kept", ".dockerignore"}


def test_files_that_commands_see_are_the_images_and_others_go_with_the_source(tmp_path: Path) -> None:
    for name in ("seen", "late", "outside"):
        (tmp_path / name).write_text(name)

    def add(name: str, remote: str) -> ImageStep:
        path = str(tmp_path / name)
        return step("add_local_file", (path,), local=path, remote=remote)

    steps = (
        add("seen", "/root/seen"),
        step("run_commands", commands=["true"]),
        add("late", "/root/late"),
        add("outside", "/etc/outside"),
    )
    plan = planned(*steps)
    assert plan.packages.problems == []
    assert [set(each.files) for each in plan.after if isinstance(each, Files)] == [{"/root/seen"}, {"/etc/outside"}]
    (tmp_path / "app.py").write_text("")
    source = Source(mode="script", entry="app.py", root=str(tmp_path), module="app")
    bundle = make_bundle(source, [function(image=Image(steps=steps))], tmp_path / "bundle.tar.gz")
    with tarfile.open(bundle) as tar:
        assert set(tar.getnames()) == {"app.py", "late"}


def test_every_problem_of_a_chain_is_told_at_once() -> None:
    image = Image(
        base="from_registry",
        base_arguments={"tag": "a b"},
        steps=(
            step("micromamba_install", packages=["x"]),
            step("env", vars={"A": "b\nc"}),
            step("env", vars={"MODALNOMAD_X": "1"}),
            step("pip_install", packages=["./here"]),
            step("dockerfile_commands", commands=["RUN x"], secrets=[{"name": "s"}]),
            step("unheard_of"),
        ),
        mounts=(Mount(kind="file", local="/x", remote="/etc/x", where="app.py:9"),),
        where="app.py:1",
    )
    problems, _ = check_images([function(image=image)], containers=True)
    told = [str(problem) for problem in problems]
    assert len(told) == 8
    for words in ("no name of an image", "conda", "more than one line", "reserved", "local path", "run_commands(…"):
        assert any(words in one for one in told), words
    assert any("does not know the step" in one for one in told)
    assert told[-1].startswith("app.py:9: ")
    assert "copy=True" in told[-1]


@pytest.mark.parametrize("base", ["micromamba", "from_scratch", "from_name", "from_id", "unheard_of"])
def test_bases_that_no_container_starts_from_here(base: str) -> None:
    (problem,) = planned(base=base).packages.problems
    assert base in problem.message


def test_what_the_process_driver_refuses_is_no_problem_in_a_container() -> None:
    image = Image(base="from_registry", base_arguments={"tag": "cuda:12"}, steps=(step("entrypoint", commands=[]),))
    assert check_images([function(image=image)], containers=True)[0] == ()
    assert len(check_images([function(image=image)])[0]) == 2


def test_the_platforms_own_image_is_the_head_and_one_installation() -> None:
    plan = plan_container(None)
    assert "uvicorn>=0.21" in plan.packages.requirements
    made = written(Install("a==1 --hash=sha256:00\n", verify=True, options=("--no-binary=a",)))
    assert made.text.startswith(HEAD)
    (copy, run) = made.text.removeprefix(HEAD).splitlines()
    assert copy == "COPY .modalnomad/install/0 /opt/modalnomad/install/0"
    command = json.loads(run.removeprefix("RUN "))
    assert command[:4] == ["/opt/modalnomad/env/bin/python", "-m", "pip", "install"]
    assert command[-5:] == [
        "--no-deps",
        "--require-hashes",
        "--no-binary=a",
        "-r",
        "/opt/modalnomad/install/0/requirements.txt",
    ]


def test_secrets_are_seen_by_their_own_step_alone() -> None:
    values = {2: {"TOKEN": 'it\'s $HOME\n`x` "q" é', "B": ""}, INDEX: {"PIP_INDEX_URL": "https://u:p@x.test"}}
    made = written(Run("echo a", number=2), Run("echo b"), Install("x"), variables=values)
    script = carrier(values)
    runs = [json.loads(line[4:]) for line in made.text.removeprefix(HEAD).splitlines() if line.startswith("RUN")]
    shown = []
    for run in runs:
        shielded, command = run[: dockerfile.SHIELD], run[dockerfile.SHIELD :]
        assert shielded[:2] == ["/bin/sh", "-c"]
        assert command
        probe = [*shielded, "env", "-0"]
        out = subprocess.run(probe, env={"ftp_proxy": script, "PATH": "/usr/bin:/bin"}, capture_output=True, check=True)
        shown.append(dict(line.split("=", 1) for line in out.stdout.decode().split("\0") if line))
    for variables in shown:
        assert "ftp_proxy" not in variables
    assert shown[0]["TOKEN"] == values[2]["TOKEN"]
    assert shown[0]["B"] == ""
    assert "TOKEN" not in shown[1] | shown[2]
    assert [("PIP_INDEX_URL" in variables) for variables in shown] == [False, False, True]


@pytest.mark.parametrize(
    ("values", "words"), [({0: {"a-b": "x"}}, "no name of a variable"), ({0: {"A": "x" * 200_000}}, "too large")]
)
def test_secrets_that_cannot_be_carried(values: dict[int, dict[str, str]], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        carrier(values)
    assert "xxx" not in caught.value.message


def test_a_command_longer_than_builders_read() -> None:
    with pytest.raises(UserError, match="longer than a Dockerfile's line"):
        written(Run("x" * 70_000))


def test_a_users_file_cannot_take_the_platforms_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the platform's"):
        written(context={".modalnomad/setup.sh": tmp_path / "x"})


def test_the_context_is_the_same_bytes_for_the_same_input(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("x")
    (tmp_path / "run.sh").chmod(0o700)
    made = written(Files({"/srv/run.sh": tmp_path / "run.sh"}))
    first, second = io.BytesIO(), io.BytesIO()
    write_context(made, first)
    (tmp_path / "run.sh").touch()
    write_context(made, second)
    assert first.getvalue() == second.getvalue()
    with tarfile.open(fileobj=io.BytesIO(first.getvalue())) as tar:
        names = tar.getnames()
        assert names == sorted(names)
        assert DOCKERFILE in names
        assert tar.getmember(".modalnomad/files/0/srv/run.sh").mode == 0o755
        assert {(member.uid, member.mtime) for member in tar} == {(0, 315532800)}


def test_the_hash_follows_from_all_input_but_the_source_of_calls(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("1")
    call = Call({"function": "bake"})
    first = input_digest(written(Files({"/f": file}), call))
    source = tmp_path / "app.py"
    source.write_text("1")
    assert input_digest(written(Files({"/f": file}), call, source={"app.py": source})) == first
    assert input_digest(written(Files({"/f": file}), call, variables={})) == first
    others = {input_digest(written(Files({"/g": file}), call)), input_digest(written(Files({"/f": file}), Run("x")))}
    others.add(input_digest(written(Files({"/f": file}), call, arguments={"A": "b"})))
    file.write_text("2")
    others.add(input_digest(written(Files({"/f": file}), call)))
    file.chmod(0o755)
    others.add(input_digest(written(Files({"/f": file}), call)))
    assert len(others - {first}) == 5


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    made = written(Files({"/f": tmp_path / "gone"}))
    with pytest.raises(UserError, match="gone cannot be read"):
        input_digest(made)
    with pytest.raises(UserError, match="gone cannot be read"):
        write_context(made, io.BytesIO())


def test_names_are_quoted_for_the_shell() -> None:
    assert shlex.quote("a b") in written(Packages(("a b",))).text
