"""PyPI `instructor`."""

from typing import Literal

import instructor
import openai
from pydantic import BaseModel

from checks import BASE, KEY, MODEL, QUESTION, check

client = openai.OpenAI(base_url=f"{BASE}/v1", api_key=KEY, timeout=120, max_retries=0)


class Weather(BaseModel):
    city: Literal["Paris", "London", "Rome"]
    raining: bool


def extract(mode):
    answer = instructor.from_openai(client, mode=mode).chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        response_model=Weather,
        max_tokens=128,
        temperature=0,
        max_retries=0,
    )
    assert isinstance(answer, Weather), answer


@check
def tools():
    extract(instructor.Mode.TOOLS)


@check
def strict_tools():
    extract(instructor.Mode.TOOLS_STRICT)


@check
def json_schema():
    extract(instructor.Mode.JSON_SCHEMA)


@check
def several():
    client_ = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    pieces = client_.chat.completions.create_partial(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        response_model=Weather,
        max_tokens=128,
        temperature=0,
    )
    assert list(pieces)[-1].city in ("Paris", "London", "Rome")
