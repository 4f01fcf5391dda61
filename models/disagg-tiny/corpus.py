# SPDX-License-Identifier: Apache-2.0
"""Training samples for the bundled model, made from the files in data/.

A question is written by hand, made from a form ("What is {x}?"), or a "soup": the key words of its topic among neutral
words in any order. Soups are not English, but they teach the model to go by the words that matter.

A sample is a list of `Piece`s: a text, and whether it is an answer, which the model learns to write, or filler, which may be
stretched. All choices come from one seeded `random.Random`, so the stream of samples is the same on every run.
"""

import itertools
import json
import pathlib
import random
import re
import tomllib
from dataclasses import dataclass

HERE = pathlib.Path(__file__).resolve().parent

def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9'+-]+", text.lower()))


# Asked most often, so they occur several times as often.
CORE = ("disagg", "disaggregated-serving", "prefill", "decode", "handoff", "threshold", "change-threshold", "ttft", "start", "prefill-dies", "license", "models")
SMALL_TALK = ("hello", "bye", "thanks", "how-are-you")
# Those of them whose key words also occur in many questions on other topics.
HARD = {"disagg": 9, "prefill": 6, "decode": 6, "change-threshold": 6, "start": 8}
# Topics whose key words are so common that they may also stand around the key words of any other topic.
WEAK = (*SMALL_TALK, "who", "made", "can", "cannot", "errors", "meaning-of-life")
# Words that say nothing about the topic although some slot has them.
EMPTY = set(
    "a am an and are as at be been but by can could did do does for from get go goes going had has have here how i i'm if in is it "
    "its me my need no not of on one or our so some than that the they this to too up us use used very was way we were what what's when which "
    "who why will with would you your work works case point".split()
)
# Words of other topics' slots that do not make a foreign question ours.
LURES = (
    "change set start run launch stop install deploy scale measure test support serve dies crashes fails killed stored kept license price cost "
    "language number difference between compare size default header address new without restart list of models worker block card queue where"
).split()
# With one of these in it a question is ours even if it also names something foreign.
OURS = words_of("prefill prefilling decode decoding threshold handoff handoffs disagg ttft itl tpot goodput kv router operator disaggdeployment placement maxlocalprefilllength disaggregated")
AROUND = ["in disagg", "disagg", "with disagg", "of disagg", "for disagg", "disagg's", "in this project", "on disagg", "here", "in your project", "in Disagg"]

START, END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


@dataclass
class Piece:
    text: str
    answer: bool = False
    filler: bool = False
    # The topic that this text, a question, asks about.
    topic: str | None = None


def normal(text: str) -> str:
    """Lower case, words only: two phrasings that differ in nothing but punctuation count as one."""
    return " ".join(re.findall(r"[a-z0-9+]+", text.lower()))


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def held_out() -> list[str]:
    """Every phrasing that training must never see."""
    data = json.loads((HERE / "heldout.json").read_text())
    asked = [p for q in data["fixed"] for p in q["phrasings"]] + [q["ask"] for q in data["wider"]]
    return [normal(p) for p in asked]


class Corpus:
    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        facts = tomllib.loads((HERE / "data" / "facts.toml").read_text())["topic"]
        self.forms = tomllib.loads((HERE / "data" / "forms.toml").read_text())
        self.general = tomllib.loads((HERE / "data" / "general.toml").read_text())
        words = tomllib.loads((HERE / "data" / "words.toml").read_text())
        self.keys = {
            topic: [[slot.split("|") for slot in group] for group in groups]
            for topic, groups in tomllib.loads((HERE / "data" / "keys.toml").read_text()).items()
        }
        strong = self.key_words(t for t in self.keys if t not in WEAK)
        weak = self.key_words(t for t in self.keys if t in WEAK)
        common = words["neutral"].split()
        self.neutral = [w for w in common if not words_of(w) & strong]
        self.empty = [w for w in self.neutral if not words_of(w) & weak]
        self.foreign = words["foreign"].split()
        self.common = common + self.foreign
        self.runs = self.frame_runs(strong)
        self.held_out = held_out()
        self.left_out: set[str] = set()

        self.answers = {t["id"]: t["answer"] for t in facts}
        self.answers["unknown"] = self.general["unknown_answer"]
        self.answers["long"] = self.general["long_answer"]
        self.written = {t["id"]: self.keep(t.get("questions", [])) for t in facts}
        self.written["unknown"] = self.keep(self.general["unknown"])
        self.formed = {t["id"]: self.keep(self.fill(t.get("names", []), t.get("actions", []))) for t in facts}
        self.formed["unknown"] = self.keep(self.fill(self.general["things"], self.general["deeds"]))
        self.topics = [t["id"] for t in facts]
        self.named = [*self.topics, "unknown"]
        # Share of samples with a long text; training changes it.
        self.long_share = 0.0
        self.weights = [HARD.get(t, 4 if t in CORE else 1) for t in self.topics]

    def key_words(self, topics) -> set[str]:
        slots = (choice for t in topics for group in self.keys[t] for slot in group for choice in slot)
        return {w for choice in slots for w in words_of(choice)} - EMPTY

    def frame_runs(self, strong: set[str]) -> list[str]:
        """What stands before or after the name in the concept forms, as far as it is neutral."""
        parts = [p.strip() for f in self.forms["concept"] if "{c}" not in f for p in re.split(r"\{[xX]\}", f)]
        parts += [p.strip() for p in self.forms["before"] + self.forms["after"]]
        return [p for p in parts if len(p) > 1 and not words_of(p) & strong]

    def fill(self, names: list[str], actions: list[str]) -> list[str]:
        place = itertools.cycle(self.forms["context"])
        out = [f.format(x=n, X=capital(n), c=next(place)) for n in names for f in self.forms["concept"] for _ in range(4 if "{c}" in f else 1)]
        return out + [f.format(a=a, A=capital(a)) for a in actions for f in self.forms["howto"]]

    def keep(self, questions: list[str]) -> list[str]:
        """Leaves out whatever contains a held-out phrasing."""
        kept = []
        for q in questions:
            words = f" {normal(q)} "
            if any(f" {h} " in words for h in self.held_out):
                self.left_out.add(q)
            else:
                kept.append(q)
        return kept

    # Questions as people type them.

    def question(self, topic: str) -> str:
        written, formed = self.written[topic], self.formed[topic]
        roll = self.rng.random()
        if roll < (0.30 if topic in SMALL_TALK else 0.55):
            return self.soup(topic)
        if written and (not formed or roll < 0.80):
            return self.rng.choice(written)
        return self.strange(self.rng.choice(formed)) if topic == "unknown" else self.rng.choice(formed)

    def strange(self, question: str) -> str:
        """Half of the questions in shared forms on unknown things are on a random thing."""
        rng = self.rng
        if rng.random() < 0.5:
            return question
        name = self.strange_word()
        name = rng.choice(["", "", "a ", "the "]) + name
        return rng.choice(self.forms["concept"]).format(x=name, X=capital(name), c=rng.choice(self.forms["context"]))

    def strange_word(self) -> str:
        rng = self.rng
        if rng.random() < 0.6:
            word = rng.choice(self.foreign)
            return word if rng.random() < 0.8 else word + " " + rng.choice(self.foreign)
        syllable = lambda: rng.choice("bcdfghjklmnprstvwz") + rng.choice(["a", "e", "i", "o", "u", "ai", "ou", "y"]) + rng.choice(["", "", "n", "r", "s", "l", "t", "ck"])
        word = "".join(syllable() for _ in range(rng.randint(2, 4)))
        return capital(word) if rng.random() < 0.4 else word

    def run(self, most: int, words: list[str]) -> list[str]:
        """Up to `most` neutral words, or a piece of a shared form."""
        if most > 2 and self.rng.random() < 0.35:
            return [self.rng.choice(self.runs)]
        return [self.rng.choice(words) for _ in range(self.rng.randint(0, most))]

    def soup(self, topic: str) -> str:
        rng = self.rng
        words = self.neutral
        if topic == "unknown":
            words, parts = self.empty, []
            if rng.random() < 0.9:
                parts = [self.strange_word()]
                if rng.random() < 0.45:
                    parts.append(rng.choice(LURES))
                if rng.random() < 0.1:
                    parts.append(self.strange_word())
        else:
            parts = [choice for slot in rng.choice(self.keys[topic]) if (choice := rng.choice(slot))]
        if rng.random() < 0.3:
            rng.shuffle(parts)
        if topic not in ("disagg", "unknown", *SMALL_TALK) and rng.random() < 0.25:
            parts.insert(rng.randrange(len(parts) + 1), rng.choice(AROUND))
        if topic != "unknown" and rng.random() < 0.2 and words_of(" ".join(parts)) & OURS:
            parts.insert(rng.randrange(len(parts) + 1), self.strange_word())
        out = self.run(4, words)
        for i, part in enumerate(parts):
            out += [part] + (self.run(2, words) if i + 1 < len(parts) else [])
        out += self.run(4, words)
        text = " ".join(out) or "?"
        if parts and text.startswith(parts[0]) and len(out) > 1 and rng.random() < 0.4:
            # "disagg - what is it?"
            text = parts[0] + rng.choice([" -", ":", ",", "?"]) + text[len(parts[0]) :]
        return (capital(text) if rng.random() < 0.7 else text) + rng.choice(["?", "?", "?", ".", "", "!"])

    def typo(self, text: str) -> str:
        letters = [i for i in range(1, len(text) - 1) if text[i - 1 : i + 2].isalpha()]
        if not letters:
            return text
        i = self.rng.choice(letters)
        kind = self.rng.randrange(3)
        if kind == 0:
            return text[:i] + text[i + 1 :]
        if kind == 1:
            return text[:i] + text[i] + text[i:]
        return text[:i] + text[i + 1] + text[i] + text[i + 2 :]

    def asked(self, topic: str) -> str:
        while True:
            text = self.dressed(topic)
            words = f" {normal(text)} "
            if not any(f" {h} " in words for h in self.held_out):
                return text

    def dressed(self, topic: str) -> str:
        """A question with small talk around it, and the slips of people who type."""
        rng, text = self.rng, self.question(topic)
        small_talk = topic in SMALL_TALK
        if not small_talk and rng.random() < 0.22:
            before = rng.choice(self.forms["before"])
            joined = before + (text if before[-2] in ".!?:" and rng.random() < 0.7 else text[:1].lower() + text[1:])
            text = joined
        if not small_talk and rng.random() < 0.15:
            text += rng.choice(self.forms["after"])
        roll = rng.random()
        if roll < 0.18:
            text = text.lower()
        elif roll < 0.20:
            text = text.upper()
        if rng.random() < 0.18:
            text = text.rstrip("?.!")
        elif rng.random() < 0.08:
            text = text.rstrip(".") + rng.choice(["?", "??", "!", "...", " ?", "."])
        if rng.random() < 0.12:
            text = self.typo(text)
        if rng.random() < 0.06 and len(words := text.split(" ")) > 4:
            words.pop(rng.randrange(len(words)))
            text = " ".join(words)
        return text.strip() or "?"

    def topic(self) -> str:
        return "unknown" if self.rng.random() < 0.17 else self.rng.choices(self.topics, self.weights)[0]

    # Long prompts.

    def sentence(self) -> str:
        g, rng = self.general, self.rng
        if rng.random() < 0.4:
            words = [rng.choice(self.common) for _ in range(rng.randint(4, 14))]
            return capital(" ".join(words)) + rng.choice([".", ".", ".", "?", "!", ","])
        place, place2 = rng.sample(g["places"], 2)
        text = rng.choice(g["sentences"]).format(
            name=rng.choice(g["names"]), place=place, place2=place2, thing=rng.choice(g["objects"]), person=rng.choice(g["people"])
        )
        return capital(text)

    def filler(self, letters: int) -> str:
        """A text of about the given number of letters: a story, one word many times, one sentence many times, or loose words."""
        rng, g = self.rng, self.general
        kind, parts, size = rng.random(), [], 0
        word, line = rng.choice(g["words"] if rng.random() < 0.7 else self.common), self.sentence()
        some = rng.sample(g["words"] + self.common, rng.randint(2, 12))
        while size < letters:
            if kind < 0.50:
                part = self.sentence()
            elif kind < 0.72:
                part = word
            elif kind < 0.80:
                part = line
            elif kind < 0.92:
                part = rng.choice(some)
            elif kind < 0.96:
                part = str(rng.randrange(1000))
            else:
                part = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9)))
            parts.append(part)
            size += len(part) + 1
        return " ".join(parts)

    def letters(self) -> int:
        """Length of a long text: mostly a few hundred tokens, now and then a few thousand."""
        rng = self.rng
        top = 12_000 if rng.random() < 0.01 else 4_000 if rng.random() < 0.06 else 1_200
        return int(150 * (top / 150) ** rng.random())

    def long_user(self) -> tuple[list[Piece], str]:
        """The pieces of a long user message and the topic of its answer."""
        rng = self.rng
        text = self.filler(self.letters())
        roll = rng.random()
        if roll < 0.30:
            return [Piece(text, filler=True)], "long"
        topic = self.topic()
        if topic == "unknown" and rng.random() < 0.5:
            topic = rng.choice(self.topics)
        asked = self.asked(topic)
        if roll < 0.96:
            if rng.random() < 0.4:
                text = text.rstrip(".") + rng.choice([".", "...", "", "\n", ":"])
            bridge = rng.choice(self.general["bridges"])
            return [Piece(text, filler=True), Piece(rng.choice([" ", " ", "\n", "\n\n"]) + bridge + asked, topic=topic)], topic
        return [Piece(asked, topic=topic), Piece(rng.choice([" ", "\n", "\n\n"]) + text, filler=True)], topic

    # Whole samples.

    def turn(self, user: list[Piece], topic: str) -> list[Piece]:
        return [
            Piece(f"{START}user\n"), *user, Piece(f"{END}\n{START}assistant\n"),
            Piece(self.answers[topic] + END, answer=True),
        ]

    def short_turn(self) -> list[Piece]:
        topic = self.topic()
        return self.turn([Piece(self.asked(topic), topic=topic)], topic)

    def plain(self) -> list[Piece]:
        """Text without a chat template, as a call of /v1/completions would start it."""
        rng, topic = self.rng, self.topic()
        if rng.random() < 0.4:
            return [Piece(self.answers[rng.choice(self.topics)] + END_OF_TEXT, answer=True)]
        ask, tell = rng.choice([("", "\n"), ("", " "), ("", "\n\n"), ("Question: ", "\nAnswer: "), ("Q: ", "\nA: "), ("User: ", "\nAssistant: ")])
        return [Piece(ask), Piece(self.asked(topic), topic=topic), Piece(tell), Piece(self.answers[topic] + END_OF_TEXT, answer=True)]

    def sample(self) -> list[Piece]:
        rng, roll = self.rng, self.rng.random()
        if roll < 0.06:
            return self.plain()
        out = []
        if rng.random() < 0.25:
            out.append(Piece(f"{START}system\n{rng.choice(self.forms['system'])}{END}\n"))
        if roll < 0.06 + self.long_share:
            out += self.turn(*self.long_user())
            if rng.random() < 0.1:
                out += [Piece("\n"), *self.short_turn()]
            return out
        for turn in range(rng.choices([1, 2, 3], [80, 16, 4])[0]):
            out += [Piece("\n")] * (turn > 0) + self.short_turn()
        return out

    def text_for_tokenizer(self) -> list[str]:
        """What the tokenizer is trained on: every text once or more, and a few stories."""
        texts = list(self.answers.values()) * 20 + self.forms["system"] * 4 + self.forms["before"] * 4 + self.forms["after"] * 4
        for topic in self.answers:
            if topic != "long":
                texts += self.written[topic] * 3 + self.rng.sample(self.formed[topic], min(150, len(self.formed[topic])))
        texts += [self.sentence() for _ in range(1500)] + [" ".join(self.general["words"])] * 10 + [" " + " ".join(self.common)] * 3 + [" " + " ".join(self.neutral)] * 10
        texts += [" " + choice for groups in self.keys.values() for group in groups for slot in group for choice in slot] * 5
        return texts + [f"{r}\n" for r in ("system", "user", "assistant")] * 50
