"""What an image's chain means here: packages, commands, files, and every problem at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modalnomad.deploy.image_limits import CONTAINER_BASES, CONTAINER_STEPS
from modalnomad.deploy.image_plan import Command, plan_image
from modalnomad.deploy.runtime_requirements import RUNTIME_REQUIREMENTS
from modalnomad.model.manifest import Image, ImageStep, Mount


def step(kind: str, files: tuple[str, ...] = (), **arguments: Any) -> ImageStep:
    return ImageStep(kind=kind, arguments=arguments, files=files, where=f"app.py:{kind}")


def image(*steps: ImageStep, **more: Any) -> Image:
    return Image(steps=steps, where="app.py:1", **more)


def test_no_image_is_the_runtime_requirements_alone() -> None:
    plan = plan_image(None)
    assert plan.requirements == list(RUNTIME_REQUIREMENTS)
    assert not plan.problems
    assert not plan.steps


def test_packages_of_all_steps_are_one_resolution() -> None:
    plan = plan_image(
        image(
            step("pip_install", packages=["six", ["rich==13.0", "flask"]]), step("uv_pip_install", packages=["boto3"])
        )
    )
    assert plan.requirements == [*RUNTIME_REQUIREMENTS, "six", "rich==13.0", "flask", "boto3"]
    assert not plan.problems


def test_every_problem_is_told_at_once_with_its_place() -> None:
    plan = plan_image(
        image(
            step("dockerfile_commands", commands=["RUN x"]),
            step("pip_install", packages=["./mine", "-e ."], extra_options="--target /x"),
            step("apt_install", packages=["dpkg"], secrets=[{"name": "s"}]),
            step("run_function", function="f", refusal="volumes are not available"),
            step("env", vars={"MODALNOMAD_X": "1"}),
            step("never_heard_of"),
            base="from_registry",
        )
    )
    told = [str(problem) for problem in plan.problems]
    assert [problem.path for problem in plan.problems][:2] == ["app.py:1", "app.py:dockerfile_commands"]
    for words in (
        "from_registry",
        "dockerfile_commands",
        "'./mine'",
        "'-e .'",
        "--target",
        "secrets=",
        "MODALNOMAD_X",
        "volumes",
    ):
        assert any(words in text for text in told), (words, told)
    assert any("never_heard_of" in text for text in told)


@pytest.mark.parametrize("kind", sorted(CONTAINER_STEPS))
def test_steps_for_containers_name_the_docker_driver_and_what_to_do(kind: str) -> None:
    (problem,) = plan_image(image(step(kind))).problems
    assert f"Image.{kind}" in problem.message
    assert "docker driver" in problem.message
    assert "use " in problem.message or "run_commands" in problem.message or "set up" in problem.message


@pytest.mark.parametrize("base", sorted(CONTAINER_BASES))
def test_bases_for_containers_name_the_docker_driver(base: str) -> None:
    (problem,) = plan_image(image(base=base)).problems
    assert f"Image.{base}" in problem.message
    assert "docker driver" in problem.message


@pytest.mark.parametrize(
    ("version", "words"), [("3.9", "need Python 3.10 or newer"), ("three", "a version such as '3.12'")]
)
def test_pythons_that_no_replica_can_run(version: str, words: str) -> None:
    (problem,) = plan_image(image(python_version=version)).problems
    assert words in problem.message
    assert repr(version) in problem.message


def test_cmd_is_noticed_as_without_effect() -> None:
    plan = plan_image(image(step("cmd", commands=["x"])))
    assert not plan.problems
    assert [notice.code for notice in plan.notices] == ["no_effect"]


def test_options_of_pip_reach_the_resolver() -> None:
    plan = plan_image(
        image(
            step(
                "pip_install",
                packages=["torch"],
                index_url="https://one.test/simple",
                extra_options="--extra-index-url=https://two.test/simple -U --only-binary :all: --pre",
                find_links="https://links.test/",
            )
        )
    )
    assert plan.options.environment() == {
        "UV_INDEX": "https://one.test/simple https://two.test/simple",
        "UV_FIND_LINKS": "https://links.test/",
        "UV_PRERELEASE": "allow",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert plan.options.arguments == ["--only-binary", ":all:"]
    assert not plan.problems


def test_no_deps_packages_are_kept_apart() -> None:
    plan = plan_image(image(step("pip_install", packages=["six"], extra_options="--no-deps")))
    assert plan.without_deps == ["six"]
    assert "six" not in plan.requirements


def test_credentials_are_masked_wherever_they_could_be_seen() -> None:
    plan = plan_image(image(step("pip_install", packages=["six"], index_url="https://me:pa55word@index.test/simple")))
    shown, reveal = plan.options.masked()
    assert "pa55word" not in repr(plan) + str(shown)
    (mask,) = reveal
    assert shown["UV_INDEX"].replace(mask, reveal[mask]) == "https://me:pa55word@index.test/simple"
    assert {"pa55word", "me:pa55word"} <= plan.options.secrets()


def test_credentials_in_a_requirement_are_refused_without_being_shown() -> None:
    plan = plan_image(image(step("pip_install", packages=["x @ git+https://me:pa55word@git.test/x"])))
    (problem,) = plan.problems
    assert "pa55word" not in str(problem)
    assert "${NAME}" in problem.message


def test_commands_see_the_variables_and_folder_set_before_them() -> None:
    plan = plan_image(
        image(
            step("env", vars={"A": "1"}),
            step("run_commands", commands=["one"]),
            step("workdir", path="/root/sub"),
            step("workdir", path="deeper"),
            step("run_commands", commands=["two"], env={"B": "2"}),
            step("env", vars={"A": "3"}),
        )
    )
    assert plan.steps == [
        Command("one", (("A", "1"),), ".", 1),
        Command("two", (("A", "1"), ("B", "2")), "sub/deeper", 4),
    ]
    assert plan.environment == {"A": "3"}
    assert plan.workdir == "sub/deeper"


def test_commands_that_use_pip_find_one() -> None:
    assert "pip" in plan_image(image(step("run_commands", commands=["pip install six"]))).requirements
    assert "pip" not in plan_image(image(step("run_commands", commands=["echo pipes"]))).requirements


def test_copied_files_belong_to_the_image_only_where_a_command_sees_them() -> None:
    before = step("add_local_file", ("/src/a.txt",), local="/src/a.txt", remote="/root/a.txt")
    after = step("add_local_file", ("/src/b.txt",), local="/src/b.txt", remote="/root/b.txt")
    plan = plan_image(image(before, step("run_commands", commands=["cat a.txt"]), after))
    assert [type(s) for s in plan.steps] == [Mount, Command]


def test_requirement_files_with_includes_constraints_and_options(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "requirements.txt").write_text(
        "# a comment\nsix==1.17.0 \\\n  --hash=sha256:00  # why\n-r sub/more.txt\n-c bounds.txt\n"
        "--index-url https://one.test/simple\n--extra-index-url=https://two.test/simple\n",
        "utf-8",
    )
    (tmp_path / "sub" / "more.txt").write_text("rich\n", "utf-8")
    (tmp_path / "bounds.txt").write_text("rich<14\n", "utf-8")
    plan = plan_image(image(step("pip_install_from_requirements", (str(tmp_path / "requirements.txt"),))))
    assert plan.problems == []
    assert plan.requirements[len(RUNTIME_REQUIREMENTS) :] == ["six==1.17.0 --hash=sha256:00", "rich"]
    assert plan.constraints == ["rich<14"]
    assert plan.options.indexes == ["https://one.test/simple", "https://two.test/simple"]


def test_a_requirements_file_that_is_missing_or_includes_itself(tmp_path: Path) -> None:
    (tmp_path / "loop.txt").write_text("-r loop.txt\n", "utf-8")
    steps = [step("pip_install_from_requirements", (str(tmp_path / name),)) for name in ("nowhere.txt", "loop.txt")]
    told = [problem.message for problem in plan_image(image(*steps)).problems]
    assert "nowhere.txt cannot be read" in told[0]
    assert "includes itself" in told[1]


def test_pyproject_dependencies_and_extras(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(
        '[project]\nname="x"\ndependencies=["six"]\n[project.optional-dependencies]\nweb=["flask"]\n', "utf-8"
    )
    good = image(step("pip_install_from_pyproject", (str(path),), optional_dependencies=["web"]))
    assert plan_image(good).requirements[-2:] == ["six", "flask"]
    (problem,) = plan_image(
        image(step("pip_install_from_pyproject", (str(path),), optional_dependencies=["gpu"]))
    ).problems
    assert "'gpu'" in problem.message
    assert "there: web" in problem.message


def test_names_that_are_no_debian_packages() -> None:
    plan = plan_image(image(step("apt_install", packages=["ffmpeg=7:5.1", "--purge", "lib x"])))
    assert plan.apt == [("ffmpeg", "app.py:apt_install")]
    assert len(plan.problems) == 2
