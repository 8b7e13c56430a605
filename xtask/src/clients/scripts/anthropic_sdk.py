"""PyPI `anthropic`: messages, tools, counting."""

import anthropic

from checks import BASE, DESCRIPTION, KEY, MODEL, PARAMETERS, QUESTION, check, is_city

client = anthropic.Anthropic(base_url=BASE, api_key=KEY, timeout=120, max_retries=0)
messages = [{"role": "user", "content": QUESTION}]
tools = [{"name": "get_weather", "description": DESCRIPTION, "input_schema": PARAMETERS}]


def common(**body):
    # The client has no argument for these.
    return {"model": MODEL, "messages": messages, "max_tokens": 48, "extra_body": {"temperature": 0, **body}}


def ask(body=None, **more):
    return client.messages.create(**common(**(body or {})), **more)


@check
def chat():
    answer = ask()
    assert "Paris" in answer.content[0].text and answer.stop_reason == "end_turn", answer
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0, answer


@check
def stream():
    whole = ask().content[0].text
    with client.messages.stream(**common()) as events:
        assert "".join(events.text_stream) == whole
        assert events.get_final_message().stop_reason == "end_turn"


@check
def forced_tool():
    # A small model would go on calling until its tokens are used up.
    one = {"disable_parallel_tool_use": True}
    for choice in [{"type": "any", **one}, {"type": "tool", "name": "get_weather", **one}]:
        answer = ask(tools=tools, tool_choice=choice)
        use = next(block for block in answer.content if block.type == "tool_use")
        assert answer.stop_reason == "tool_use" and use.name == "get_weather", answer
        is_city(use.input)


@check
def forced_tool_streamed():
    with client.messages.stream(**common(), tools=tools, tool_choice={"type": "any"}) as events:
        answer = events.get_final_message()
    is_city(next(block for block in answer.content if block.type == "tool_use").input)


@check
def tool_results_are_read():
    talk = messages + [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Paris"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "Rain."}]}]},
    ]
    answer = client.messages.create(model=MODEL, messages=talk, tools=tools, max_tokens=8)
    assert answer.usage.input_tokens > 20, answer


@check
def structured():
    answer = ask({"output_config": {"format": {"type": "json_schema", "schema": PARAMETERS}}})
    is_city(answer.content[0].text)


@check
def count_tokens():
    for more in [{}, {"system": "Be brief."}, {"tools": tools}]:
        counted = client.messages.count_tokens(model=MODEL, messages=messages, **more).input_tokens
        answer = client.messages.create(model=MODEL, messages=messages, max_tokens=1, **more)
        used = answer.usage
        total = used.input_tokens + (used.cache_read_input_tokens or 0) + (used.cache_creation_input_tokens or 0)
        assert counted == total, (counted, used)


@check
def stop_sequence():
    answer = ask(stop_sequences=["Paris"])
    assert answer.stop_reason == "stop_sequence" and answer.stop_sequence == "Paris", answer


@check
def models():
    assert MODEL in [model.id for model in client.models.list()]


@check
def errors():
    try:
        client.messages.create(model="no-such-model", messages=messages, max_tokens=1)
        raise AssertionError("an unknown model was answered")
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error", error.body
    try:
        ask({"top_p": 7})
        raise AssertionError("a wrong number was taken")
    except anthropic.BadRequestError as error:
        assert error.body["error"]["type"] == "invalid_request_error", error.body
