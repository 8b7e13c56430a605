"""PyPI `ollama`: chat, generate, embed, models."""

import ollama

from checks import BASE, CITIES, DESCRIPTION, MODEL, PARAMETERS, QUESTION, check, embedder, is_city, is_vector

client = ollama.Client(host=BASE, timeout=120)
messages = [{"role": "user", "content": QUESTION}]
options = {"temperature": 0, "num_predict": 48}


@check
def chat():
    answer = client.chat(model=MODEL, messages=messages, options=options)
    assert "Paris" in answer.message.content and answer.done and answer.eval_count > 0, answer


@check
def stream():
    whole = client.chat(model=MODEL, messages=messages, options=options).message.content
    pieces = list(client.chat(model=MODEL, messages=messages, options=options, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == whole
    assert [piece.done for piece in pieces].count(True) == 1 and pieces[-1].done_reason == "stop", pieces[-1]


@check
def generate():
    answer = client.generate(model=MODEL, prompt=QUESTION, options=options)
    assert "Paris" in answer.response, answer
    raw = client.generate(model=MODEL, prompt="The capital of France is", raw=True, options={**options, "num_predict": 4})
    assert "Paris" in raw.response, raw


@check
def structured():
    is_city(client.chat(model=MODEL, messages=messages, options=options, format=PARAMETERS).message.content)
    answer = client.chat(model=MODEL, messages=messages, options=options, format="json").message.content
    assert answer.lstrip().startswith("{"), answer


@check
def tools():
    tool = {"type": "function", "function": {"name": "get_weather", "description": DESCRIPTION, "parameters": PARAMETERS}}
    answer = client.chat(model=MODEL, messages=messages, tools=[tool], options=options)
    for call in answer.message.tool_calls or []:
        assert call.function.name == "get_weather" and call.function.arguments["city"] in CITIES, call


@check
def embeddings():
    vectors = client.embed(model=embedder(), input=["a text", "another"]).embeddings
    assert len(vectors) == 2
    is_vector(vectors[0])


@check
def models():
    assert any(model.model.split(":")[0] == MODEL.split(":")[0] for model in client.list().models)
    shown = client.show(MODEL)
    architecture = shown.modelinfo["general.architecture"]
    assert shown.modelinfo[f"{architecture}.context_length"] > 0 and "completion" in shown.capabilities, shown
    assert client.ps().models


@check
def errors():
    try:
        client.chat(model="no-such-model", messages=messages)
        raise AssertionError("an unknown model was answered")
    except ollama.ResponseError as error:
        assert error.status_code == 404, error
