"""PyPI `openai-agents`, over both of OpenAI's APIs."""

from typing import Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

from checks import BASE, KEY, MODEL, QUESTION, check

set_tracing_disabled(True)
called = []


class Weather(BaseModel):
    city: Literal["Paris", "London", "Rome"]
    raining: bool


@function_tool
def get_weather(city: Literal["Paris", "London", "Rome"]) -> str:
    """Tells the weather in a city."""
    called.append(city)
    return f"It rains in {city}."


def run(kind, choice=None, **more):
    client = AsyncOpenAI(base_url=f"{BASE}/v1", api_key=KEY, timeout=120, max_retries=0)
    settings = ModelSettings(temperature=0, max_tokens=96, tool_choice=choice)
    agent = Agent(name="a", instructions="Be brief.", model=kind(model=MODEL, openai_client=client), model_settings=settings, **more)
    return Runner.run_sync(agent, QUESTION, max_turns=3).final_output


def chats(kind):
    assert "Paris" in run(kind)


def calls(kind):
    called.clear()
    # The tool's result goes back and the model answers.
    assert run(kind, "required", tools=[get_weather])
    assert called and called[0] in ("Paris", "London", "Rome"), called


def structures(kind):
    assert isinstance(run(kind, output_type=Weather), Weather)


@check
def chat():
    chats(OpenAIChatCompletionsModel)


@check
def forced_tool():
    calls(OpenAIChatCompletionsModel)


@check
def structured():
    structures(OpenAIChatCompletionsModel)


@check
def responses():
    chats(OpenAIResponsesModel)


@check
def responses_forced_tool():
    calls(OpenAIResponsesModel)


@check
def responses_structured():
    structures(OpenAIResponsesModel)
