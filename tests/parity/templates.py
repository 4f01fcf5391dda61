"""Generates the golden data of the chat templates: what transformers' `apply_chat_template` gives a model.

    pip install transformers jinja2
    python tests/parity/templates.py

Writes tests/parity/data/templates/: `snippets.json`, the snippets of `templates/snippets.py` with the result of each,
and `chats.json`, the chat templates of `data/templates/chat` with every conversation of `templates/conversations.py`.
transformers sets Jinja2 up (an immutable sandbox, its own `tojson`, the `generation` tag) and normalizes messages;
nothing of that is repeated here. The clock is fixed, so that dates can be compared. The test is router/src/model/template.
"""

import datetime
import json
import pathlib
import re
import sys

import jinja2
import transformers
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent
DATA = HERE / "data" / "templates"
sys.path.insert(0, str(HERE / "templates"))

import conversations  # noqa: E402
import snippets  # noqa: E402

NOW = datetime.datetime(2025, 3, 5, 7, 8, 9, 123456)


class Clock(datetime.datetime):
    """A `datetime` with a fixed time."""

    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = Clock


def outcome(render):
    """The result of `render`: a text, or why it is refused."""
    try:
        text = render()
        # A Python string may hold half of a surrogate pair; no tokenizer accepts that.
        text.encode()
        # Addresses in memory differ between runs.
        return {"text": re.sub(r" at 0x[0-9a-f]+", " at an address", text)}
    except jinja2.exceptions.TemplateError as error:
        # `raise_exception` raises exactly this class; the template engine's own errors are subclasses.
        if type(error) is jinja2.exceptions.TemplateError:
            return {"raised": str(error.message)}
        return {"error": f"{type(error).__name__}: {error}"}
    except Exception as error:  # noqa: BLE001 errors of a template are TypeErrors, ValueErrors, ...
        return {"error": f"{type(error).__name__}: {error}"}


def single(source):
    """The snippets in `source`; each of several adjacent expressions is one."""
    parts = re.findall(r"\{\{(?:(?!\}\} ?\|? ?\{\{).)*?\}\}", source)
    rest = source
    for part in parts:
        rest = rest.replace(part, "", 1)
    if len(parts) < 2 or rest.strip(" |[]") or "raw" in source:
        return [source]
    return parts


def snippet_data():
    sources = [part for line in snippets.SNIPPETS.strip("\n").split("\n") for part in single(line)]
    cases, seen = [], set()
    for source in sources + snippets.MULTILINE:
        if source in seen:
            continue
        seen.add(source)

        def render(source=source):
            template = chat_template_utils._compile_jinja_template(source)
            return template.render(**json.loads(json.dumps(snippets.CONTEXT)))

        cases.append({"source": source, **outcome(render)})
    return {"now": NOW.isoformat(), "context": snippets.CONTEXT, "cases": cases}


def chat_data():
    cases = []
    for path in sorted((DATA / "chat").glob("*.jinja")):
        source = path.read_bytes().decode()
        for conversation in conversations.CONVERSATIONS:
            for add_generation_prompt in (False, True):
                def render(conversation=conversation, source=source, prompt=add_generation_prompt):
                    tokenizer = transformers.PreTrainedTokenizerFast(
                        tokenizer_object=conversations.tokenizer(), **conversations.SPECIALS
                    )
                    return tokenizer.apply_chat_template(
                        json.loads(json.dumps(conversation["messages"])),
                        tools=conversation.get("tools"),
                        documents=conversation.get("documents"),
                        chat_template=source,
                        add_generation_prompt=prompt,
                        tokenize=False,
                        **conversation.get("kwargs", {}),
                    )

                cases.append({
                    "template": path.stem,
                    "conversation": conversation["name"],
                    "add_generation_prompt": add_generation_prompt,
                    **outcome(render),
                })
    return {
        "now": NOW.isoformat(),
        "specials": conversations.SPECIALS,
        "conversations": conversations.CONVERSATIONS,
        "cases": cases,
    }


def write(name, data):
    head = {key: value for key, value in data.items() if key != "cases"}
    # One case per line, so that a change of one case is one line of a diff.
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in data["cases"])
    text = json.dumps(head, ensure_ascii=False)[:-1] + ', "cases": [\n' + lines + "\n]}\n"
    (DATA / name).write_text(text)
    print(f"{name}: {len(data['cases'])} cases")


if __name__ == "__main__":
    DATA.mkdir(parents=True, exist_ok=True)
    write("snippets.json", snippet_data())
    write("chats.json", chat_data())
