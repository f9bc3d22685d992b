"""The notebook of the examples, run by a real kernel: nothing in it fails, and its pictures are there."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

import rs_aligner
from tests.conftest import ROOT

NOTEBOOK = ROOT / "examples" / "first_run.ipynb"


def outputs(notebook: Any, kind: str) -> list[str]:
    """What the cells show, of a kind."""
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output["data"][kind] for output in shown if kind in output.get("data", {})]


def test_the_notebook_is_stored_without_what_a_run_shows() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_notebook_trains_and_shows_pictures_and_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=150, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()

    pictures = [Image.open(io.BytesIO(base64.b64decode(one))) for one in outputs(notebook, "image/png")]
    assert len(pictures) == 2
    for picture in pictures:
        assert min(picture.size) > 200
        colours = picture.convert("RGB").getcolors(1 << 20)
        assert colours is not None
        assert len(colours) > 10  # not an empty frame
    pages = outputs(notebook, "text/html")
    assert sum("dataframe" in page for page in pages) == 2
    assert sum("<iframe srcdoc=" in page and "held-out score rose" in page for page in pages) == 1

    run = rs_aligner.Run(tmp_path / "runs" / "first_run")
    held_out = run.metrics["validation/reward"].dropna()
    assert held_out.iloc[-1] > held_out.iloc[0] + 0.2
    assert (run.folder / "report.html").is_file()
