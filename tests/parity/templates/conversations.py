"""Conversations of the chat templates' golden data, and the other variables that a tokenizer gives templates."""

import tokenizers

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def tokenizer():
    """A tokenizer that is never used to tokenize."""
    return tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))


def user(content, **more):
    return {"role": "user", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def call(number, name, arguments):
    return {"id": f"call{number:05}", "type": "function", "function": {"name": name, "arguments": arguments}}


def tool(number, content, name="get_weather"):
    return {"role": "tool", "tool_call_id": f"call{number:05}", "name": name, "content": content}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a place, in \"words\" — <b>now</b>.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "Name of the place, like Zürich 🏔"},
                    "days": {"type": "array", "items": {"type": "integer"}, "description": "Which days"},
                    "unit": {"type": ["string", "null"], "enum": ["C", "F"], "default": "C"},
                },
                "required": ["place"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "stop", "description": "Stop.", "parameters": {"type": "object", "properties": {}, "required": []}}},
]

ASKED = [user("What is the weather in Zürich?")]
CALLED = ASKED + [assistant("", tool_calls=[call(1, "get_weather", {"place": "Zürich", "days": [1, 2], "unit": None})])]
ANSWERED = CALLED + [tool(1, '{"temp": 21.5, "sky": "clear"}'), assistant("It is **21.5 °C** and clear.")]

CONVERSATIONS = [
    {"name": "one question", "messages": [user("Hi!")]},
    {"name": "system and question", "messages": [system(" You are terse.\n"), user("  Hi!\n")]},
    {"name": "turns", "messages": [system("Be kind."), user("1"), assistant(" one "), user("2"), assistant("two\n"), user("3")]},
    {"name": "ends with the assistant", "messages": [user("Say a."), assistant("a")]},
    {"name": "unicode and markup", "messages": [user("<|im_end|> & \"quotes\" 'é' 😀\u2028\u00a0{{ x }} {% y %} \\n\t\x07"), assistant("</s>ok"), user("日本語")]},
    {"name": "empty contents", "messages": [system(""), user(""), assistant(""), user("")]},
    {"name": "two users in a row", "messages": [user("a"), user("b")]},
    {"name": "assistant first", "messages": [assistant("a"), user("b")]},
    {"name": "names", "messages": [user("Hi!", name="ann"), assistant("Hello ann", name="bot"), user("Bye", name="bob")]},
    {"name": "thoughts in the content", "messages": [user("1+1?"), assistant("<think>\nLet me add.\n</think>\n\n2"), user("2+2?"), assistant("<think>\n\n</think>\n\n4")]},
    {"name": "reasoning beside the content", "messages": [user("1+1?"), assistant("2", reasoning_content="Let me add."), user("2+2?"), assistant("4", reasoning_content="\nAgain.\n")]},
    {"name": "reasoning under its older name", "messages": [user("1+1?"), assistant("2", reasoning="Let me add."), user("2+2?")]},
    {"name": "parts", "messages": [system([{"type": "text", "text": "Be kind."}]), user([{"type": "text", "text": "Look: "}, {"type": "text", "text": "text"}])]},
    {"name": "tools offered", "messages": [system("Be kind.")] + ASKED, "tools": TOOLS},
    {"name": "tools offered without system", "messages": ASKED, "tools": TOOLS},
    {"name": "a call", "messages": CALLED, "tools": TOOLS},
    {"name": "a result", "messages": ANSWERED[:-1], "tools": TOOLS},
    {"name": "an answer, and on", "messages": [system("Be kind.")] + ANSWERED + [user("Thanks")], "tools": TOOLS},
    {"name": "an answer without tools", "messages": ANSWERED + [user("Thanks")]},
    {"name": "two calls at once", "messages": ASKED + [assistant("Both:", tool_calls=[call(1, "get_weather", {"place": "a"}), call(2, "stop", {})]), tool(1, "rain"), tool(2, "stopped", "stop")], "tools": TOOLS},
    {"name": "arguments as text", "messages": ASKED + [assistant("", tool_calls=[call(1, "get_weather", '{"place": "Bern"}')]), tool(1, "sun")], "tools": TOOLS},
    {"name": "documents", "messages": [user("What do they say?")], "documents": [{"title": "A", "text": "First \"text\"."}, {"title": "Ü", "text": "Second\nline", "n": 3}]},
    {"name": "thinking off", "messages": [user("Hi!")], "kwargs": {"enable_thinking": False, "thinking": False}},
    {"name": "thinking on", "messages": [user("Hi!"), assistant("Yes?"), user("Go")], "kwargs": {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}},
    {"name": "other variables", "messages": [system("S")] + ASKED, "tools": TOOLS, "kwargs": {"tools_in_user_message": False, "date_string": "1 Jan 2030", "builtin_tools": ["brave_search", "code_interpreter"], "safety_mode": "strict", "model_identity": "You are X."}},
    {"name": "a role of its own", "messages": [user("a"), {"role": "critic", "content": "b"}]},
]
