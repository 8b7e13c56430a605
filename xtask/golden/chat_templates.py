#!/usr/bin/env python3
"""Renders chat templates with Python's Jinja2, set up as the transformers library sets it up.

usage: chat_templates.py TEMPLATES_DIR OUTPUT.json

The output holds the conversations and, for each template and conversation, the rendered text or
the error. Outputs shared by several conversations are not merged; long ones are kept whole.
Needs Jinja2 3.1.
"""
import datetime
import hashlib
import json
import pathlib
import sys

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime.datetime(2026, 3, 9, 14, 5, 7)  # a Monday
BOS, EOS = "<s>", "</s>"


class Generation(Extension):
    """`{% generation %}`: marks what the model wrote; the text itself is unchanged."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: NOW.strftime(form)
    return env


def weather_tool():
    return {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city, <now> & \"later\"",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Name of the city, e.g. Zürich"},
                    "days": {"type": "integer", "minimum": 1},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                },
                "required": ["city"],
            },
        },
    }


def conversations():
    """Name to keyword arguments of the template."""
    chat = [
        {"role": "system", "content": "You are  helpful.\nBe brief. "},
        {"role": "user", "content": " Hello <b>\"there\"</b> & 'you', ça va? 日本"},
        {"role": "assistant", "content": "Fine!\n\nAnd you?"},
        {"role": "user", "content": "What is 1 < 2?\n"},
    ]
    calls = [
        {"role": "user", "content": "How is the weather in Zürich?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call12345",
                    "type": "function",
                    "function": {
                        "name": "get_weather",
                        "arguments": {"city": "Zürich", "days": 2, "exact": True, "note": None, "t": 0.5},
                    },
                }
            ],
        },
        {
            "role": "tool",
            "tool_call_id": "call12345",
            "name": "get_weather",
            "content": "{\"sky\": \"clear\", \"high\": 21.5}",
        },
    ]
    answer = {"role": "assistant", "content": "Clear, 21.5 degrees."}
    reasoning = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "reasoning_content": "Add them.", "content": "<think>\nAdd.\n</think>\n\n4"},
        {"role": "user", "content": "3+3?"},
    ]
    two_calls = [
        {"role": "system", "content": "Use tools."},
        calls[0],
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                calls[1]["tool_calls"][0],
                {
                    "id": "call67890",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": {"city": "Bern", "list": [1, "a"]}},
                },
            ],
        },
        calls[2],
        {**calls[2], "tool_call_id": "call67890"},
        answer,
        {"role": "user", "content": "Thanks!"},
    ]
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "First."}, {"type": "text", "text": "Second."}]},
    ]
    return {
        "chat": {"messages": chat, "add_generation_prompt": True},
        "chat_open": {"messages": chat, "add_generation_prompt": False},
        "tools": {"messages": calls, "tools": [weather_tool()], "add_generation_prompt": True},
        "tools_answered": {"messages": calls + [answer], "tools": [weather_tool()], "add_generation_prompt": False},
        "two_calls": {
            "messages": two_calls, "tools": [weather_tool(), weather_tool()], "add_generation_prompt": True},
        "reasoning": {"messages": reasoning, "add_generation_prompt": True},
        "no_thinking": {"messages": reasoning, "add_generation_prompt": True, "enable_thinking": False},
        "parts": {"messages": parts, "add_generation_prompt": True},
    }


def main():
    folder, output = map(pathlib.Path, sys.argv[1:])
    cases = conversations()
    templates = {}
    for path in sorted(folder.glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        try:
            template = environment().from_string(source)
        except jinja2.TemplateError as error:
            templates[path.name] = {"compile_error": f"{type(error).__name__}: {error}"}
            continue
        results = {}
        for name, arguments in cases.items():
            # A template must not see what another render did to the messages.
            arguments = json.loads(json.dumps(arguments))
            arguments.setdefault("tools", None)
            arguments.setdefault("documents", None)
            try:
                text = template.render(bos_token=BOS, eos_token=EOS, **arguments)
                if len(text) > 4000:
                    digest = hashlib.sha256(text.encode()).hexdigest()
                    results[name] = {"begin": text[:2000], "length": len(text.encode()), "sha256": digest}
                else:
                    results[name] = {"text": text}
            except Exception as error:  # whatever a template does wrong in Python
                results[name] = {"error": f"{type(error).__name__}: {error}"}
        templates[path.name] = results
    document = {
        "now": [NOW.year, NOW.month, NOW.day, NOW.hour, NOW.minute, NOW.second],
        "bos_token": BOS,
        "eos_token": EOS,
        "conversations": cases,
        "templates": templates,
    }
    output.write_text(json.dumps(document, ensure_ascii=False, indent=0, sort_keys=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
