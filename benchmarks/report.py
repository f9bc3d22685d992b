"""What the report of a large run costs: to make, to make again while the run goes on, and to look at.

    python benchmarks/report.py [--sizes 10,50] [--keep FOLDER]       a JSON line for each size

A size is a number of steps of 64 prompts with 32 answers, made up (`made_up_run.py`): 50 steps are 102,400
rollouts. For each:

    cpu_seconds, peak_mib     of a process that makes the whole report, imports included
    of_rollouts               CPU seconds of it in the viewer's files
    page_bytes                of report.html, which is what is read before one looks at rollouts
    files_bytes, ledger_bytes of all of report/, and of what it was made from
    opens_seconds             until Chromium has loaded the page
    answers_seconds           from going to the rollouts until the first step's are there
    step_seconds              for another step; search_seconds, for a search over a step's 2,048 answers
    most_elements             in the document at a time, over all pages of a step, a prompt over all steps and
                              the table of tokens
    again_cpu_seconds         mean of reports behind each fifth of the run, while it grows; again_written, how
                              many of the files of earlier steps these have written again

With `--keep` a run that is there is measured without the last two. Chromium is Debian's, driven by
Playwright, from a file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from made_up_run import Size, grow_run

_MAKE = """
import json, resource, sys, time
from pathlib import Path
import rs_aligner.report.page as page
spent = []
write = page.write_chunks
def timed(*arguments):
    began = time.process_time()
    found = write(*arguments)
    spent.append(time.process_time() - began)
    return found
page.write_chunks = timed
page.write_report(Path(sys.argv[1]))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"cpu_seconds": round(used.ru_utime + used.ru_stime, 2), "of_rollouts": round(sum(spent), 2),
                  "peak_mib": round(used.ru_maxrss / 1024, 1)}))
"""


def measure(run: Path, size: Size) -> dict[str, Any]:
    """All figures of a size, of a run that is made unless it is there."""
    grown = {} if run.exists() else grow(run, size)
    shutil.rmtree(run / "report", ignore_errors=True)
    made = make_report(run)
    return {
        "rollouts": size.steps * size.prompts * size.answers,
        **made,
        "page_bytes": (run / "report.html").stat().st_size,
        "files_bytes": _bytes(run / "report"),
        "ledger_bytes": _bytes(run / "rollouts"),
        **look(run / "report.html"),
        **grown,
    }


def grow(run: Path, size: Size) -> dict[str, Any]:
    """Make a run, with a report behind each fifth of it, as while it goes on."""
    spent, written = [], 0
    before: dict[str, int] = {}
    for step in grow_run(run, size):
        if step == 0 or step % (size.steps // 5):
            continue
        spent.append(make_report(run)["cpu_seconds"])
        now = {path.name: path.stat().st_mtime_ns for path in (run / "report").glob("*_0*.js")}
        written += sum(now[name] != then for name, then in before.items())
        before = now
    return {"again_cpu_seconds": round(statistics.fmean(spent), 2), "again_written": written}


def make_report(run: Path) -> dict[str, Any]:
    """Write a report in a process of its own; returns what that took."""
    command = [sys.executable, "-c", _MAKE, str(run)]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return found


def look(page_file: Path) -> dict[str, Any]:
    """How long Chromium takes, and how much it has in the document."""
    from playwright.sync_api import sync_playwright

    most = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        # The page's policy lets no text be run as a script, which is how Playwright waits for a function.
        page = browser.new_page(viewport={"width": 1400, "height": 900}, bypass_csp=True)
        page.set_default_timeout(120_000)

        def count() -> None:
            nonlocal most
            most = max(most, page.evaluate("document.querySelectorAll('*').length"))

        def wait(text: str) -> None:
            page.wait_for_function(f"document.getElementById('rv-count').textContent.includes({text!r})")

        began = time.perf_counter()
        page.goto(page_file.as_uri())
        opened = time.perf_counter() - began
        count()
        began = time.perf_counter()
        page.locator("#rv").scroll_into_view_if_needed()
        wait("2,048 answers of 2,048")
        answered = time.perf_counter() - began
        while page.locator("#rv-page-after").is_enabled():
            count()
            page.locator("#rv-page-after").click()
        began = time.perf_counter()
        page.locator("#rv-after").click()
        page.wait_for_function("document.getElementById('rv-step').value === 'rollouts_000002'")
        wait("2,048 answers of 2,048")
        stepped = time.perf_counter() - began
        began = time.perf_counter()
        page.locator("#rv-q").fill("</script>")
        page.wait_for_function(
            "/^(?!2,048).* of 2,048/.test(document.getElementById('rv-count').textContent)"
        )
        searched = time.perf_counter() - began
        page.locator("#rv-reset").click()
        wait("2,048 answers of 2,048")
        page.locator("#rv-groups button:has-text('over all steps')").first.click()
        page.wait_for_selector("#rv-leave:visible")
        page.wait_for_function("document.getElementById('rv-groups').getAttribute('aria-busy') === 'false'")
        count()
        page.locator("#rv-colour").check()
        page.locator("#rv-groups button:has-text('Tokens')").first.click()
        count()
        browser.close()
    return {
        "opens_seconds": round(opened, 2),
        "answers_seconds": round(answered, 2),
        "step_seconds": round(stepped, 2),
        "search_seconds": round(searched, 2),
        "most_elements": most,
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="10,50", help="steps, with commas between them")
    parser.add_argument(
        "--keep", type=Path, help="where runs are made and left; a folder that goes by default"
    )
    args = parser.parse_args()
    for steps in map(int, args.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            place = args.keep or Path(folder)
            print(json.dumps(measure(place / f"steps_{steps}", Size(steps=steps))), flush=True)


if __name__ == "__main__":
    main()
