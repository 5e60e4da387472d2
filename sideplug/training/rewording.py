"""Told questions in other words, made by rules on the device: for facts that were told in one phrasing only.

A plugin that has met a fact in one phrasing answers this phrasing, and no other. So such a question is also trained in
other frames, and asked in a further one when training wants to know when to stop. The rules are for English; of a
question in another language only its bare form is made. They never change what is asked for, and make nothing of a
prompt that is no question. The base can't do it: asked to rephrase, it answers (docs/LOG.md).
Test: pytest tests/training/test_rewording.py
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sideplug.training.facts import FUNCTION_WORDS, words_of

TRAINED = ("Tell me {}.", "Do you know {}?", "I need to know {}.", "Remind me {}, please.")
HELD = ("I can't remember {}, can you help?", "Could you say {}?")  # frames that are never trained
ASIDE = ("Please answer this: {}", "{} Just the answer.", "A question: {}")
LONGEST = 25  # words

_WH = r"(?P<wh>(?:what|which|who|whose|where|when|why|how)(?: [\w'’-]+){0,4}?)"
_OWNED = r"(?:my|our|your|his|her|their|the|this|that)(?: [\w'’-]+){1,6}"
_NAMED = r"[A-Z][\w'’-]*(?: [A-Z][\w'’.-]*)*(?:['’]s(?: [\w'’-]+){1,4})?"
_NOUN = rf"(?P<noun>{_OWNED}|{_NAMED})"
_VERB_WORDS = "is are was were am do does did has have had will would can could should shall may might must"
_VERBS = frozenset(_VERB_WORDS.split())
_IS = re.compile(rf"{_WH}(?: |['’])(?P<be>is|s|are|was|were) {_NOUN}\?", re.IGNORECASE)
_DO = re.compile(rf"{_WH} do (?P<who>I|we|you|they) (?P<rest>[^?]+)\?", re.IGNORECASE)
_DOES = re.compile(rf"{_WH} does (?P<who>(?:my |our |the )?[\w'’-]+) (?P<verb>[a-z]+)(?P<rest>[^?]*)\?", re.IGNORECASE)
_SUBJECT = re.compile(r"(?P<wh>who) (?!(?:is|are|was|were|do|does|did|am)\b)(?P<rest>[^?]+)\?", re.IGNORECASE)
_ASKED_FOR = re.compile(
    r"(?:please )?(?:tell|give|remind) me (?:of )?(?P<noun>(?:my|our|the) [\w'’ -]+?)(?:, please)?[.?!]?", re.IGNORECASE
)
_FRAGMENT = re.compile(r"[^.?!:\n]{1,80}\?")
_NO_NOUN = re.compile(r"(?:\w+(?:ed|ing)|on|in|at|to|for|from|with|of|by|about)$", re.IGNORECASE)


@dataclass(frozen=True)
class Rewordings:
    """Of one question: phrasings to train on, and phrasings that are asked only to judge."""

    trained: list[str]
    held: list[str]


def reword(question: str) -> Rewordings:
    """Return a question in other words; without any where it is no question, or too long."""
    text = " ".join(question.split())
    spoken = words_of(text)
    if not spoken or len(spoken) > LONGEST or "?" in text[:-1]:
        return Rewordings([], [])
    clause = _clause(text)
    if clause:
        asked_for = re.fullmatch(r"what (.+) (is|are)", clause) if not text.endswith("?") else None
        plain = [f"What {asked_for[2]} {asked_for[1]}?"] if asked_for else []
        return Rewordings(plain + [form.format(clause) for form in TRAINED], [form.format(clause) for form in HELD])
    if text[-1] not in "?？":
        return Rewordings([], [])
    bare = text[:-1].rstrip().casefold()
    if not set(spoken) & FUNCTION_WORDS:
        is_fragment = _FRAGMENT.fullmatch(text) and text.isascii() and len(spoken) <= 6
        if not is_fragment:
            return Rewordings([bare], [])  # another language, perhaps
        return Rewordings([f"What is {bare}?", f"Tell me {bare}.", bare], [f"I forgot {bare}, can you help?"])
    if re.fullmatch(r"(?:what|which|who|whose|whom|where|when|why|how|whats|whos)", spoken[0]) or _is_verb(spoken[0]):
        key = [word for word in text[:-1].split() if words_of(word) and words_of(word)[0] not in FUNCTION_WORDS]
        asking = spoken[0] if not _is_verb(spoken[0]) else "yes or no"
        held = [f"{' '.join(key)}, {asking}?"] if key else []
        return Rewordings([form.format(text) for form in ASIDE] + [bare], held)
    article = "" if spoken[0] in ("my", "our", "the", "your", "his", "her", "their") else "the "
    noun = article + text[0].lower() + text[1:-1].rstrip()
    return Rewordings([f"What is {noun}?", f"Tell me {noun}.", bare], [f"I can't remember {noun}, can you help?"])


def _is_verb(word: str) -> bool:
    return word in _VERBS


def _clause(text: str) -> str:
    """What is asked for as a clause: "what my dog's name is" of "What is my dog's name?". "" where no rule fits."""
    found = _IS.fullmatch(text)
    if found and not _NO_NOUN.search(found["noun"]):
        be = "is" if found["be"].lower() == "s" else found["be"].lower()
        return f"{_lower(found['wh'])} {found['noun']} {be}"
    found = _DO.fullmatch(text)
    if found:
        return f"{_lower(found['wh'])} {found['who']} {found['rest'].strip()}"
    found = _DOES.fullmatch(text)
    if found and not (found["who"].islower() and " " not in found["who"]):
        return f"{_lower(found['wh'])} {found['who']} {_third(found['verb'])}{found['rest'].rstrip()}"
    found = _SUBJECT.fullmatch(text)
    if found:
        return f"{_lower(found['wh'])} {found['rest'].strip()}"
    found = _ASKED_FOR.fullmatch(text)
    if found:
        noun = found["noun"].strip()
        last = noun.split()[-1]
        plural = last.endswith("s") and not last.endswith(("ss", "'s", "’s", "us", "is"))
        return f"what {noun} {'are' if plural else 'is'}"
    return ""


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _third(verb: str) -> str:
    """The verb with "she": "drinks", "goes", "carries", "has"."""
    if verb == "have":
        return "has"
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    return verb + ("es" if re.search(r"(?:s|x|z|ch|sh|o)$", verb) else "s")
