"""Runs checks of a client, each on a line of its own: `ok NAME`, `FAILED NAME: why`, `NOT RUN NAME: why`."""

import json
import sys

BASE, MODEL, EMBEDDER = sys.argv[1:4]
KEY = "unused"
QUESTION = "What is the capital of France?"
CITIES = ["Paris", "London", "Rome"]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": CITIES}},
    "required": ["city"],
    "additionalProperties": False,
}
DESCRIPTION = "Tells the weather in a city."


class NotRun(Exception):
    """Something is missing here."""


class LeftOut(Exception):
    """Nobody asked for it."""


def check(function):
    """Runs a check at once."""
    name = function.__name__
    try:
        function()
        print(f"ok {name}", flush=True)
    except LeftOut:
        pass
    except NotRun as why:
        print(f"NOT RUN {name}: {why}", flush=True)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:1500]
        print(f"FAILED {name}: {why}", flush=True)
    return function


def embedder():
    """The model to embed with."""
    if EMBEDDER == "-":
        raise LeftOut
    if not EMBEDDER:
        raise NotRun("no embedding model is served")
    return EMBEDDER


def is_city(arguments):
    """Arguments of the tool, as JSON or an object."""
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert set(arguments) == {"city"} and arguments["city"] in CITIES, arguments


def is_vector(vector):
    """A vector of numbers that are not all zero."""
    vector = list(vector)
    assert len(vector) > 8 and any(vector) and all(x == x for x in vector), vector[:8]
