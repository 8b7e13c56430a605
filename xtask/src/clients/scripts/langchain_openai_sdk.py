"""PyPI `langchain-openai`."""

from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from checks import BASE, KEY, MODEL, QUESTION, check, embedder, is_city, is_vector

common = {"base_url": f"{BASE}/v1", "api_key": KEY, "model": MODEL, "temperature": 0, "timeout": 120, "max_retries": 0}
model = ChatOpenAI(max_tokens=64, **common)


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "London", "Rome"]
    raining: bool


@tool
def get_weather(city: Literal["Paris", "London", "Rome"]) -> str:
    """Tells the weather in a city."""
    return f"It rains in {city}."


@check
def chat():
    assert "Paris" in model.invoke(QUESTION).content


@check
def stream():
    assert "".join(chunk.content for chunk in model.stream(QUESTION)) == model.invoke(QUESTION).content


@check
def forced_tool():
    for choice in ["any", "get_weather"]:
        call = model.bind_tools([get_weather], tool_choice=choice).invoke(QUESTION).tool_calls[0]
        assert call["name"] == "get_weather", call
        is_city(call["args"])


@check
def structured():
    for method in ["json_schema", "function_calling"]:
        assert isinstance(model.with_structured_output(Weather, method=method).invoke(QUESTION), Weather), method


@check
def embeddings():
    embeddings = OpenAIEmbeddings(
        base_url=f"{BASE}/v1", api_key=KEY, model=embedder(), check_embedding_ctx_length=False
    )
    is_vector(embeddings.embed_query("a text"))
    assert len(embeddings.embed_documents(["a", "b"])) == 2


@check
def responses():
    assert "Paris" in ChatOpenAI(use_responses_api=True, max_tokens=64, **common).invoke(QUESTION).text
