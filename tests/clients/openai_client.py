#!/usr/bin/env python3
"""Tests `disagg up` with the `openai` Python package: what its users do, and what they get.

`make clients` runs it in a venv with requirements.txt. Both placements are used: prompts of more than 64 tokens are
prefilled remotely. The last tests use no client library.
"""

import json
import subprocess
import time
import unittest

import openai

from deployment import Deployment

THRESHOLD = 64
IN_FLIGHT_MAX = 4
MODEL = Deployment.MODEL

SHORT = [{"role": "user", "content": "Tell me a story."}]
LONG = [{"role": "user", "content": "Tell me a long story about the sea and the king and the fox. " * 20}]


def setUpModule():
    global DEPLOYMENT, CLIENT
    DEPLOYMENT = Deployment(
        "--max-local-prefill-length", str(THRESHOLD), DISAGG_MAX_IN_FLIGHT=str(IN_FLIGHT_MAX)
    )
    unittest.addModuleCleanup(DEPLOYMENT.__exit__)
    DEPLOYMENT.__enter__()
    # No retries: they would hide errors.
    CLIENT = openai.OpenAI(base_url=f"{DEPLOYMENT.url}/v1", api_key="none", max_retries=0, timeout=120)
    unittest.addModuleCleanup(CLIENT.close)


def chat(messages=SHORT, **options):
    options = {"max_tokens": 16, "temperature": 0, "extra_body": {"ignore_eos": True}} | options
    return CLIENT.chat.completions.create(model=MODEL, messages=messages, **options)


def complete(prompt="Once upon a time", **options):
    options = {"max_tokens": 16, "temperature": 0, "extra_body": {"ignore_eos": True}} | options
    return CLIENT.completions.create(model=MODEL, prompt=prompt, **options)


def chat_text(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


class Models(unittest.TestCase):
    def test_the_model_is_listed_and_found(self):
        self.assertEqual([model.id for model in CLIENT.models.list()], [MODEL])
        self.assertEqual(CLIENT.models.retrieve(MODEL).id, MODEL)


class Chat(unittest.TestCase):
    def test_an_answer_has_all_its_fields(self):
        answer = chat()
        self.assertEqual((answer.object, answer.model), ("chat.completion", MODEL))
        self.assertTrue(answer.id.startswith("chatcmpl-"))
        choice = answer.choices[0]
        self.assertEqual((len(answer.choices), choice.index, choice.finish_reason), (1, 0, "length"))
        self.assertEqual(choice.message.role, "assistant")
        self.assertTrue(choice.message.content)
        usage = answer.usage
        self.assertEqual(usage.completion_tokens, 16)
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + 16)

    def test_a_stream_is_the_same_text_on_both_placements(self):
        for messages, placement in ((SHORT, "local"), (LONG, "remote")):
            # Each has its own cache salt, so that nothing of the prompt is cached the second time.
            options = [{"ignore_eos": True, "cache_salt": f"{placement}-{way}"} for way in ("whole", "stream")]
            raw = CLIENT.chat.completions.with_raw_response.create(
                model=MODEL, messages=messages, max_tokens=24, temperature=0, extra_body=options[0]
            )
            self.assertEqual(raw.headers["x-disagg-placement"].split(";")[0], placement)
            whole = raw.parse()
            chunks = list(chat(
                messages, max_tokens=24, stream=True, stream_options={"include_usage": True}, extra_body=options[1]
            ))
            self.assertEqual(chat_text(chunks), whole.choices[0].message.content)
            self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
            self.assertEqual({chunk.id for chunk in chunks}, {chunks[0].id})
            self.assertEqual(chunks[-2].choices[0].finish_reason, "length")
            self.assertEqual((chunks[-1].choices, chunks[-1].usage.completion_tokens), ([], 24))
            self.assertTrue(all(chunk.usage is None for chunk in chunks[:-1]))
            self.assertEqual(chunks[-1].usage.prompt_tokens, whole.usage.prompt_tokens)

    def test_without_include_usage_a_stream_has_none(self):
        chunks = list(chat(stream=True))
        self.assertTrue(all(chunk.usage is None and chunk.choices for chunk in chunks))

    def test_the_streaming_helper_of_the_package(self):
        # The package raises when an answer ends at its limit, so this one ends at a stop string.
        whole = chat(max_tokens=40).choices[0].message.content
        stop = whole[len(whole) // 2:][:4]
        with CLIENT.chat.completions.stream(
            model=MODEL, messages=SHORT, max_tokens=40, temperature=0, stop=stop, extra_body={"ignore_eos": True}
        ) as stream:
            deltas = [event.delta for event in stream if event.type == "content.delta"]
            final = stream.get_final_completion().choices[0]
        self.assertEqual((final.finish_reason, final.message.content), ("stop", whole[: whole.index(stop)]))
        self.assertEqual("".join(deltas), final.message.content)

    def test_content_parts(self):
        parts = [{"role": "user", "content": [{"type": "text", "text": SHORT[0]["content"]}]}]
        self.assertEqual(chat(parts).choices[0].message.content, chat().choices[0].message.content)

    def test_max_completion_tokens(self):
        answer = CLIENT.chat.completions.create(
            model=MODEL, messages=SHORT, max_completion_tokens=3, extra_body={"ignore_eos": True}
        )
        self.assertEqual(answer.usage.completion_tokens, 3)

    def test_a_stream_that_is_closed_early_ends_the_request(self):
        for _ in range(2 * IN_FLIGHT_MAX):
            # These would be refused with 429 if the earlier requests still counted.
            stream = retried(lambda: chat(max_tokens=4000, stream=True))
            next(iter(stream))
            stream.close()


class Completions(unittest.TestCase):
    def test_whole_and_streamed(self):
        whole = complete()
        self.assertEqual((whole.object, whole.choices[0].finish_reason), ("text_completion", "length"))
        text = "".join(chunk.choices[0].text for chunk in complete(stream=True))
        self.assertEqual(text, whole.choices[0].text)

    def test_token_ids_as_prompt(self):
        self.assertEqual(complete([70, 80, 90]).usage.prompt_tokens, 3)


    def test_a_batch_of_prompts_is_answered_in_its_order(self):
        prompts = ["Once upon a time", "The sea", "x " * 100]
        alone = [complete(prompt).choices[0].text for prompt in prompts]
        self.assertEqual(len(set(alone)), 3)
        batch = complete(prompts)
        self.assertEqual([choice.index for choice in batch.choices], [0, 1, 2])
        self.assertEqual([choice.text for choice in batch.choices], alone)
        self.assertEqual(batch.usage.completion_tokens, 3 * 16)
        streamed = list(complete(prompts, stream=True, stream_options={"include_usage": True}))
        self.assertEqual(texts(streamed), alone)
        self.assertEqual(streamed[-1].usage, batch.usage.model_copy(
            update={"prompt_tokens_details": streamed[-1].usage.prompt_tokens_details}
        ))
        ids = [[70, 80, 90], [71, 81]]
        of_ids = complete(ids, n=2)
        self.assertEqual([choice.index for choice in of_ids.choices], [0, 1, 2, 3])
        self.assertEqual(of_ids.usage.prompt_tokens, 5)
        # Greedy: both choices of a prompt have the same text, which is also that of the prompt alone.
        wanted = [complete(prompt).choices[0].text for prompt in ids]
        self.assertEqual([choice.text for choice in of_ids.choices], [wanted[0], wanted[0], wanted[1], wanted[1]])

    def test_echo(self):
        prompt = "Grüße from the sea. "
        text = complete(prompt).choices[0].text
        self.assertEqual(complete(prompt, echo=True).choices[0].text, prompt + text)
        self.assertEqual(texts(complete(prompt, echo=True, stream=True, n=2)), [prompt + text] * 2)


def texts(chunks):
    """The texts of a streamed completion, by index."""
    found = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        found[choice.index] = found.get(choice.index, "") + choice.text
    return [found[index] for index in sorted(found)]


class Sampling(unittest.TestCase):
    def test_several_choices(self):
        options = {"n": 3, "temperature": 1, "seed": 11, "max_tokens": 24}
        whole = chat(**options)
        said = [choice.message.content for choice in whole.choices]
        self.assertEqual([choice.index for choice in whole.choices], [0, 1, 2])
        self.assertEqual(len(set(said)), 3)
        self.assertEqual(whole.usage.completion_tokens, 3 * 24)
        # The first choice equals the choice of a request with one, with either placement and in a stream.
        self.assertEqual(chat(**options | {"n": 1}).choices[0].message.content, said[0])
        streamed = {}
        for chunk in chat(stream=True, **options):
            for choice in chunk.choices:
                streamed[choice.index] = streamed.get(choice.index, "") + (choice.delta.content or "")
        self.assertEqual([streamed[index] for index in range(3)], said)
        remote = [
            [choice.message.content for choice in chat(LONG, **options, extra_body=body).choices]
            for body in ({"ignore_eos": True, "cache_salt": "n remote"}, {"ignore_eos": True, "cache_salt": "n remote"})
        ]
        self.assertEqual(remote[0], remote[1])
        self.assertEqual(len(set(remote[0])), 3)

    def test_extras_of_vllm(self):
        body = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 8, "ignore_eos": False}
        drawn = [chat(temperature=1, seed=seed, max_tokens=8, extra_body=body) for seed in (1, 2)]
        # With one token to choose from, the seed does not matter.
        self.assertEqual(len({answer.choices[0].message.content for answer in drawn}), 1)
        self.assertEqual([answer.usage.completion_tokens for answer in drawn], [8, 8])

    def test_logit_bias_and_stop_token_ids(self):
        answer = complete(logit_bias={"70": 100}, max_tokens=5, logprobs=0)
        self.assertEqual(len(set(answer.choices[0].logprobs.tokens)), 1)
        body = {"stop_token_ids": [70], "ignore_eos": True}
        stopped = complete(logit_bias={"70": 100}, max_tokens=5, extra_body=body)
        self.assertEqual((stopped.choices[0].finish_reason, stopped.usage.completion_tokens), ("stop", 1))

    def test_seeds(self):
        draw = lambda seed: chat(temperature=1, seed=seed, max_tokens=32).choices[0].message.content
        self.assertEqual(draw(7), draw(7))
        self.assertGreater(len({draw(seed) for seed in range(4)}), 1)

    def test_a_seed_draws_the_same_on_both_placements(self):
        def draw(salt, placement):
            # Prefilled remotely the first time; then the prompt is cached and the same token is drawn locally.
            raw = CLIENT.chat.completions.with_raw_response.create(
                model=MODEL, messages=LONG, max_tokens=24, temperature=1, seed=5,
                extra_body={"ignore_eos": True, "cache_salt": salt},
            )
            self.assertTrue(raw.headers["x-disagg-placement"].startswith(placement), raw.headers)
            return raw.parse().choices[0].message.content

        first = draw("seeds", "remote")
        self.assertEqual(draw("other seeds", "remote"), first)
        self.assertEqual(draw("seeds", "local"), first)

    def test_stop(self):
        whole = complete(max_tokens=40).choices[0].text
        # In the middle of the text, and where it occurs first.
        stop = whole[len(whole) // 2:][:4]
        wanted = whole[: whole.index(stop)]
        for stops in (stop, ["never to be seen", stop]):
            choice = complete(max_tokens=40, stop=stops).choices[0]
            self.assertEqual((choice.text, choice.finish_reason), (wanted, "stop"))
            chunks = list(complete(max_tokens=40, stop=stops, stream=True))
            self.assertEqual("".join(chunk.choices[0].text for chunk in chunks), wanted)
            self.assertEqual(chunks[-1].choices[0].finish_reason, "stop")


class Logprobs(unittest.TestCase):
    def test_chat(self):
        answer = chat(logprobs=True, top_logprobs=3, max_tokens=5).choices[0]
        rows = answer.logprobs.content
        self.assertEqual(len(rows), 5)
        for row in rows:
            self.assertLessEqual(row.logprob, 0)
            self.assertEqual(len(row.top_logprobs), 3)
            # Greedy: the token is the likeliest one.
            self.assertAlmostEqual(row.logprob, max(top.logprob for top in row.top_logprobs), places=5)
            self.assertEqual(bytes(row.bytes).decode(errors="replace"), row.token)
        self.assertEqual(b"".join(bytes(row.bytes) for row in rows).decode(errors="replace"), answer.message.content)

    def test_completions_and_streams(self):
        whole = complete(logprobs=2, max_tokens=5).choices[0].logprobs
        self.assertEqual(len(whole.tokens), len(whole.token_logprobs))
        self.assertEqual(len(whole.tokens), 5)
        streamed = [chunk.choices[0].logprobs for chunk in complete(logprobs=2, max_tokens=5, stream=True)]
        tokens = [token for logprobs in streamed if logprobs for token in logprobs.tokens]
        self.assertEqual(tokens, whole.tokens)


class Errors(unittest.TestCase):
    """Each error as the class and the fields that the package makes of it."""

    def refused(self, error_class, request, **fields):
        with self.assertRaises(error_class) as caught:
            request()
        error = caught.exception
        self.assertTrue(error.message)
        for name, wanted in fields.items():
            self.assertEqual(getattr(error, name), wanted, f"{name} of {error}")
        return error

    def test_bad_values_name_the_field(self):
        bad = openai.BadRequestError
        kind = {"type": "invalid_request_error", "status_code": 400}
        self.refused(bad, lambda: chat(temperature=9), param="temperature", code="invalid_value", **kind)
        self.refused(bad, lambda: chat([]), param="messages", code="invalid_value", **kind)
        self.refused(bad, lambda: chat(max_tokens=0), param="max_tokens", **kind)
        self.refused(bad, lambda: complete(stop=[""]), param="stop", **kind)
        self.refused(bad, lambda: chat([{"role": "nobody", "content": "x"}]), param="messages[0].role", **kind)
        self.refused(bad, lambda: chat(extra_body={"colour": 1}), param="colour", code="unknown_parameter", **kind)

    def test_what_is_not_supported_is_refused_by_name(self):
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        unsupported = {"code": "unsupported_parameter", "status_code": 400}
        refused = lambda request, name: self.refused(openai.BadRequestError, request, param=name, **unsupported)
        refused(lambda: chat(tools=tools), "tools")
        refused(lambda: chat(response_format={"type": "json_object"}), "response_format")
        refused(lambda: chat(reasoning_effort="high"), "reasoning_effort")
        refused(lambda: complete(best_of=3), "best_of")
        refused(lambda: complete(suffix="end"), "suffix")
        refused(lambda: complete(echo=True, logprobs=1), "logprobs")
        refused(lambda: complete(extra_body={"guided_regex": "a+"}), "guided_regex")

    def test_counts_have_limits(self):
        bad = {"code": "invalid_value", "status_code": 400}
        self.refused(openai.BadRequestError, lambda: chat(n=0), param="n", **bad)
        self.refused(openai.BadRequestError, lambda: chat(n=1000), param="n", **bad)
        too_many = ["x"] * (IN_FLIGHT_MAX + 1)
        self.refused(openai.BadRequestError, lambda: complete(too_many), param="prompt", **bad)
        self.refused(openai.BadRequestError, lambda: complete([[70], [10**6]]), param="prompt[1]", **bad)

    def test_a_prompt_beyond_the_context(self):
        self.refused(
            openai.BadRequestError, lambda: complete("word " * 20_000), code="context_length_exceeded", param="prompt"
        )

    def test_an_unknown_model(self):
        fields = {"status_code": 404, "code": "model_not_found", "param": "model"}
        self.refused(openai.NotFoundError, lambda: complete_with("nobody"), **fields)
        self.refused(openai.NotFoundError, lambda: CLIENT.models.retrieve("nobody"), code="model_not_found")

    def test_an_unknown_endpoint(self):
        request = lambda: CLIENT.embeddings.create(model=MODEL, input="x")
        self.refused(openai.NotFoundError, request, code="unknown_url")

    def test_too_many_at_once(self):
        open_streams = [retried(lambda: chat(max_tokens=6000, stream=True)) for _ in range(IN_FLIGHT_MAX)]
        try:
            error = self.refused(openai.RateLimitError, chat, status_code=429)
            self.assertGreaterEqual(int(error.response.headers["retry-after"]), 1)
        finally:
            for stream in open_streams:
                stream.close()
        self.assertTrue(retried(chat).choices)


class Unicode(unittest.TestCase):
    TEXT = "Grüße, 世界! 👩‍👩‍👧 مرحبا \u0000\u200b end"

    def test_any_text_goes_in_and_streams_never_cut_a_character(self):
        messages = [{"role": "user", "content": self.TEXT}]
        whole = chat(messages, max_tokens=64).choices[0].message.content
        self.assertEqual(chat_text(chat(messages, max_tokens=64, stream=True)), whole)

    def test_prompts_are_counted_in_bytes_of_utf_8_at_most(self):
        tokens = complete(self.TEXT, max_tokens=1).usage.prompt_tokens
        self.assertLessEqual(tokens, len(self.TEXT.encode()))
        self.assertGreater(tokens, 10)


class Curl(unittest.TestCase):
    """The same server without a client library, as the README shows it."""

    def curl(self, path, body=None, *options):
        """Status, headers and body."""
        command = ["curl", "--silent", "--show-error", "--no-buffer", "--max-time", "60", "--include", *options]
        if body is not None:
            command += ["--header", "Content-Type: application/json", "--data-binary", "@-"]
        text = body if isinstance(body, str) or body is None else json.dumps(body)
        done = subprocess.run(
            [*command, DEPLOYMENT.url + path], input=text, capture_output=True, text=True, check=True
        )
        head, _, rest = done.stdout.partition("\n\n")
        lines = head.splitlines()
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        return int(lines[0].split()[1]), headers, rest

    def test_a_whole_answer(self):
        status, headers, body = self.curl(
            "/v1/chat/completions", {"model": MODEL, "messages": SHORT, "max_tokens": 4, "n": 2}
        )
        self.assertEqual((status, headers["content-type"]), (200, "application/json"))
        self.assertTrue(headers["x-disagg-placement"].startswith("local; reason="), headers)
        self.assertEqual(len(headers["x-request-id"]), 32)
        self.assertEqual(len(json.loads(body)["choices"]), 2)

    def test_a_stream(self):
        request = {
            "model": MODEL, "messages": LONG, "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True},
            "cache_salt": "curl", "ignore_eos": True,
        }
        status, headers, body = self.curl("/v1/chat/completions", request)
        self.assertEqual((status, headers["content-type"]), (200, "text/event-stream"))
        self.assertTrue(headers["x-disagg-placement"].startswith("remote; reason=above-threshold; "), headers)
        events = body.split("\n\n")
        self.assertEqual(events[-2:], ["data: [DONE]", ""])
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        self.assertEqual(chunks[-1]["usage"]["completion_tokens"], 4)
        self.assertEqual([chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]][-1], "length")

    def test_what_is_no_request(self):
        for path, body, wanted, code in (
            ("/v1/completions", "{", 400, "invalid_json"),
            ("/v1/completions", "\ufeff{}", 400, "invalid_json"),
            ("/v1/completions", {"model": MODEL}, 400, "missing_required_parameter"),
            ("/v1/completions", None, 405, "method_not_allowed"),
            ("/v1/nothing", None, 404, "unknown_url"),
        ):
            status, headers, answer = self.curl(path, body)
            self.assertEqual((status, headers["content-type"]), (wanted, "application/json"), path)
            self.assertEqual(json.loads(answer)["error"]["code"], code)


def complete_with(model):
    return CLIENT.completions.create(model=model, prompt="x", max_tokens=1)


def retried(request):
    """Retries a request that may arrive while earlier, cancelled ones still count."""
    for _ in range(100):
        try:
            return request()
        except openai.RateLimitError:
            time.sleep(0.05)
    return request()


if __name__ == "__main__":
    unittest.main(verbosity=2)
