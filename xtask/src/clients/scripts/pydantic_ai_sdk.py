"""PyPI `pydantic-ai`."""

from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from checks import BASE, KEY, MODEL, QUESTION, check

provider = OpenAIProvider(base_url=f"{BASE}/v1", api_key=KEY)
model = OpenAIChatModel(MODEL, provider=provider)
settings = {"temperature": 0, "max_tokens": 128, "timeout": 120}


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "London", "Rome"]
    raining: bool


@check
def chat():
    assert "Paris" in Agent(model, model_settings=settings).run_sync(QUESTION).output


@check
def stream():
    import asyncio

    async def read():
        async with Agent(model, model_settings=settings).run_stream(QUESTION) as result:
            return "".join([piece async for piece in result.stream_text(delta=True)])

    assert "Paris" in asyncio.run(read())


@check
def structured():
    for output in [ToolOutput(Weather), NativeOutput(Weather)]:
        answer = Agent(model, output_type=output, model_settings=settings, retries=0).run_sync(QUESTION).output
        assert isinstance(answer, Weather), answer


@check
def responses():
    agent = Agent(OpenAIResponsesModel(MODEL, provider=provider), model_settings=settings)
    assert "Paris" in agent.run_sync(QUESTION).output
