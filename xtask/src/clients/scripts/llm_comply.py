"""PyPI `llm-comply` in its three formats: the shape and the meaning of answers, by the published specifications."""

import json
import os
import subprocess
import sys

from checks import BASE, KEY, MODEL, check

# A text model reads no pictures, and says so.
PICTURES = ("image",)


def comply(form, base):
    start = "import sys; from llm_comply.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "-u", base, "-k", KEY, "-m", MODEL]
    done = subprocess.run(
        [*command, "--json", "--timeout", "120", "--format", form], capture_output=True, text=True, timeout=900
    )
    try:
        report = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        raise AssertionError(f"no report: {done.stdout[-300:]} {done.stderr[-300:]}") from None
    tests = report.get("results") or report.get("tests") or []
    assert tests, f"no test was run: {list(report)}"
    tests = [t for t in tests if not any(word in t["id"] for word in PICTURES)]
    failed = [t for t in tests if t["status"] not in ("passed", "skipped")]
    assert not failed, "; ".join(f"{t['id']}: {t.get('errors')}" for t in failed)


@check
def openai_chat():
    comply("openai-chat", f"{BASE}/v1")


@check
def open_responses():
    comply("open-responses", f"{BASE}/v1")


@check
def anthropic():
    comply("anthropic", f"{BASE}/v1")
