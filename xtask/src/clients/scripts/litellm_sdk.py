"""PyPI `litellm`, by each of the routes that it has to a server like this."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

from checks import BASE, DESCRIPTION, KEY, MODEL, PARAMETERS, QUESTION, check, embedder, is_city, is_vector

litellm.telemetry = False
messages = [{"role": "user", "content": QUESTION}]
tools = [{"type": "function", "function": {"name": "get_weather", "description": DESCRIPTION, "parameters": PARAMETERS}}]
schema = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": PARAMETERS}}


def ask(route="openai", base=f"{BASE}/v1", **more):
    return litellm.completion(
        model=f"{route}/{MODEL}", api_base=base, api_key=KEY, messages=messages, max_tokens=48, temperature=0, timeout=120, **more
    )


@check
def chat():
    assert "Paris" in ask().choices[0].message.content


@check
def stream():
    text = "".join(chunk.choices[0].delta.content or "" for chunk in ask(stream=True))
    assert text == ask().choices[0].message.content, text


@check
def forced_tool():
    answer = ask(tools=tools, tool_choice={"type": "function", "function": {"name": "get_weather"}})
    is_city(answer.choices[0].message.tool_calls[0].function.arguments)


@check
def structured():
    is_city(ask(response_format=schema).choices[0].message.content)


@check
def embeddings():
    answer = litellm.embedding(model=f"openai/{embedder()}", api_base=f"{BASE}/v1", api_key=KEY, input=["a text"])
    is_vector(answer.data[0]["embedding"])


@check
def anthropic_route():
    assert "Paris" in ask("anthropic", BASE).choices[0].message.content


@check
def ollama_route():
    assert "Paris" in ask("ollama_chat", BASE).choices[0].message.content
    assert "Paris" in ask("ollama", BASE).choices[0].message.content


@check
def hosted_vllm_route():
    assert "Paris" in ask("hosted_vllm").choices[0].message.content
