"""PyPI `openai`: chat, completions, embeddings, models, responses."""

import openai
from pydantic import BaseModel
from typing import Literal

from checks import BASE, DESCRIPTION, KEY, MODEL, PARAMETERS, QUESTION, check, embedder, is_city, is_vector

client = openai.OpenAI(base_url=f"{BASE}/v1", api_key=KEY, timeout=120, max_retries=0)
messages = [{"role": "user", "content": QUESTION}]
tools = [{"type": "function", "function": {"name": "get_weather", "description": DESCRIPTION, "parameters": PARAMETERS}}]


class Weather(BaseModel):
    city: Literal["Paris", "London", "Rome"]
    raining: bool


def ask(**more):
    return client.chat.completions.create(model=MODEL, messages=messages, max_tokens=48, temperature=0, **more)


@check
def chat():
    answer = ask()
    assert "Paris" in answer.choices[0].message.content, answer
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens > 0, answer


@check
def stream():
    whole = ask().choices[0].message.content
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole, (text, whole)
    assert chunks[-1].usage.total_tokens > 0 and not chunks[-1].choices, chunks[-1]
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]


@check
def several_with_logprobs():
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=4, n=2, logprobs=True, top_logprobs=3
    )
    assert [c.index for c in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert all(len(t.top_logprobs) == 3 and t.logprob <= 0 for t in choice.logprobs.content)


@check
def forced_tool():
    answer = ask(tools=tools, tool_choice={"type": "function", "function": {"name": "get_weather"}})
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather" and call.id, call
    is_city(call.function.arguments)


@check
def required_tool_streamed():
    name, arguments, reason = None, "", None
    # A small model would go on calling until its tokens are used up.
    for chunk in ask(tools=tools, tool_choice="required", parallel_tool_calls=False, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            name = call.function.name or name
            arguments += call.function.arguments or ""
        reason = chunk.choices[0].finish_reason or reason
    assert (name, reason) == ("get_weather", "tool_calls"), (name, reason)
    is_city(arguments)


@check
def tool_results_are_read():
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    talk = messages + [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "It rains in Paris."},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=talk, tools=tools, tool_choice="none", max_tokens=8)
    assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls, answer


@check
def structured():
    answer = client.chat.completions.parse(
        model=MODEL, messages=messages, max_tokens=100, temperature=0, response_format=Weather
    )
    assert isinstance(answer.choices[0].message.parsed, Weather), answer


@check
def json_object():
    import json

    answer = ask(response_format={"type": "json_object"}).choices[0]
    text = answer.message.content
    assert text.lstrip().startswith("{"), text
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


@check
def completion():
    answer = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0)
    assert "Paris" in answer.choices[0].text, answer


@check
def embeddings():
    one = client.embeddings.create(model=embedder(), input="a text")
    is_vector(one.data[0].embedding)
    two = client.embeddings.create(model=embedder(), input=["a text", "another"], encoding_format="float")
    assert [d.index for d in two.data] == [0, 1]
    assert all(abs(a - b) < 1e-4 for a, b in zip(one.data[0].embedding, two.data[0].embedding))


@check
def models():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


@check
def errors():
    try:
        client.chat.completions.create(model="no-such-model", messages=messages)
        raise AssertionError("an unknown model was answered")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found", error
    try:
        ask(top_p=7)
        raise AssertionError("a wrong number was taken")
    except openai.BadRequestError as error:
        assert error.param == "top_p", error


@check
def responses():
    answer = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=48, temperature=0)
    assert "Paris" in answer.output_text and answer.status == "completed", answer


@check
def responses_streamed():
    with client.responses.stream(model=MODEL, input=QUESTION, max_output_tokens=48, temperature=0) as events:
        kinds = [event.type for event in events]
        assert "Paris" in events.get_final_response().output_text
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed", kinds


@check
def responses_forced_tool():
    tool = {"type": "function", "name": "get_weather", "description": DESCRIPTION, "parameters": PARAMETERS, "strict": True}
    answer = client.responses.create(model=MODEL, input=QUESTION, tools=[tool], tool_choice="required", max_output_tokens=48)
    is_city(next(item for item in answer.output if item.type == "function_call").arguments)


@check
def responses_structured():
    answer = client.responses.parse(model=MODEL, input=QUESTION, text_format=Weather, max_output_tokens=100, temperature=0)
    assert isinstance(answer.output_parsed, Weather), answer
