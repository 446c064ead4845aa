"""The pages of docs/ say what is true: their code runs, their links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vmf_kernels.backends import OPS

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "README.md")
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def torchrun(command: str, folder: Path) -> None:
    program, *words = command.split()
    assert program == "torchrun"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for op in OPS.values():  # as a page may change them
        monkeypatch.setattr(op, "_infer", op._infer)
        monkeypatch.setattr(op, "backends", op.backends)
    torch._dynamo.reset()
    blocks = BLOCK.findall(page.read_text())
    code = "".join(text for kind, text in blocks if kind == "python")
    assert "assert" in code
    namespace = {"__name__": "__main__"}
    for kind, text in blocks:
        if kind == "sh":
            torchrun(text.strip(), tmp_path)
        elif text.startswith("# file: "):
            (tmp_path / text.split()[2]).write_text(text)
        else:
            exec(compile(text, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docs/README.md", ROOT / "README.md"], ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    links = LINK.findall(BLOCK.sub("", page.read_text()))
    local = [link for link in links if "://" not in link]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert not missing and (local or page in PAGES)


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text()
    assert PAGES and all(f"]({page.name})" in index for page in PAGES)
