"""Modules that are called from elsewhere, as terraform/README.md says."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.support.repository import ROOT
from tests.support.terraform import TERRAFORM, needs_terraform, run
from tests.support.terraform_cluster import copied

README = TERRAFORM / "README.md"
CALL = """
module "names" {{
  source = "{source}"
}}

output "key" {{
  value = module.names.platform_key
}}
"""


@needs_terraform
def test_a_copy_of_an_example_finds_modules_where_the_page_says(tmp_path: Path) -> None:
    checkout, mine = copied(tmp_path / "checkout"), tmp_path / "mine"
    (told,) = re.findall(r"`/opt/modalnomad(/[^`]*/)…`", README.read_text("utf-8"))
    mine.mkdir()
    (mine / "main.tf").write_text(CALL.format(source=f"{checkout}{told}names"))

    for words in (("init",), ("apply", "-auto-approve")):
        done = run(mine, *words, "-no-color")
        assert done.returncode == 0, done.stdout + done.stderr
    shown = run(mine, "output", "-json", "key")
    facts = json.loads((ROOT / "modalnomad/hashicorp/setup/platform.json").read_text("utf-8"))
    assert json.loads(shown.stdout) == facts["platform_key"]
