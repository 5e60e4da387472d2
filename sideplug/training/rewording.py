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
_NAMED = r"(?:(?-i:[A-Z][\w'’-]*(?: [A-Z][\w'’.-]*)*)(?:['’]s(?: [\w'’-]+){1,4})?|[\w-]+['’]s(?: [\w'’-]+){1,4})"
_NOUN = rf"(?P<noun>{_OWNED}|{_NAMED})"
_VERB_WORDS = "is are was were am do does did has have had will would can could should shall may might must"
_VERBS = frozenset(_VERB_WORDS.split())
# Which of the words behind "does" is the verb no rule tells ("my uncle Theo live"), so it must be one of these, which
# are hardly ever nouns. Elsewhere the question is framed whole.
_DONE_WORDS = (
    "arrive ask become begin believe belong bring buy carry celebrate close collect come contain cost cook "
    "deliver depart die do drink drive earn eat end enjoy expire fear feed feel finish fit fly forget get give go "
    "grow happen hate have hear include keep know lead learn leave like listen live look lose love make marry "
    "mean meet need open own owe pay prefer put read recommend remember require run say see sell send serve sing "
    "sit sleep smoke speak spell spend start stay study swim take teach tell think travel treat use visit wait "
    "want wear weigh write"
)
_DONE = frozenset(_DONE_WORDS.split())
_NO_VERB_WORDS = "to for of on in at from with by about a an the my our your his her their its"
_NO_VERB_BEHIND = frozenset(_NO_VERB_WORDS.split())
_IS = re.compile(rf"{_WH}(?: |['’])(?P<be>is|s|are|was|were) {_NOUN}\?", re.IGNORECASE)
_DO = re.compile(rf"{_WH} do (?P<who>I|we|you|they) (?P<rest>[^?]+)\?", re.IGNORECASE)
_DOES = re.compile(rf"{_WH} does (?P<rest>[^?]+)\?", re.IGNORECASE)
_MODAL = "(?:will|would|can|could|should|shall|may|might|must)"
_INVERTED = (  # who is not the one who does it: "who is …", "who has he …", "who will Anna …"
    "(?:is|are|was|were|do|does|did|am)\\b|(?:has|have|had) (?:I|we|you|they|he|she|it)\\b|"
    f"{_MODAL} (?:I|we|you|they|he|she|it|(?:my|our|your|his|her|their|the) [\\w'’-]+|(?-i:[A-Z])[\\w'’-]*)\\b"
)
_SUBJECT = re.compile(rf"(?P<wh>who) (?!{_INVERTED})(?P<rest>[^?]+)\?", re.IGNORECASE)
_ASKED_FOR = re.compile(
    r"(?:please )?(?:tell|give|remind) me (?:of )?(?P<noun>(?:my|our|the) [\w'’ -]+?)(?:, please)?[.?!]?", re.IGNORECASE
)
# Words that are said of somebody, which end no name: "why is my dog sick" asks for no sick
_SAID_OF = (
    "sick ill sad happy angry cross tired afraid allergic free busy open shut closed late early ready due here there "
    "away home out off up down now today tonight tomorrow long old tall big heavy high far safe broken empty full"
)
_FRAGMENT = re.compile(r"[^.?!:\n]{1,80}\?")
_NO_NOUN = re.compile(
    rf"(?:\w+(?:ed|ing)|\b(?:on|in|at|to|for|from|with|of|by|about|{_SAID_OF.replace(' ', '|')}))$", re.IGNORECASE
)


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
    own = re.match(r"[\w-]+['’]s\b", text)  # "Anna's code for the gate?"
    article = "" if own or spoken[0] in ("my", "our", "the", "your", "his", "her", "their", "a", "an") else "the "
    noun = article + (text[0] if own else text[0].lower()) + text[1:-1].rstrip()
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
    done = _conjugated(found["rest"].split()) if found else ""
    if found and done:
        return f"{_lower(found['wh'])} {done}"
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


def _conjugated(spoken: list[str]) -> str:
    """What stands behind "does" with its verb in the third person: "my uncle Theo lives"; "" where no verb is known."""
    before = ["the", *(word.lower() for word in spoken)]  # what stands before each word
    verbs = [n for n, word in enumerate(spoken) if n and word in _DONE and before[n] not in _NO_VERB_BEHIND]
    if not verbs:
        return ""
    n = verbs[-1]
    return " ".join([*spoken[:n], _third(spoken[n]), *spoken[n + 1 :]])


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _third(verb: str) -> str:
    """The verb with "she": "drinks", "goes", "carries", "has"."""
    if verb == "have":
        return "has"
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    return verb + ("es" if re.search(r"(?:s|x|z|ch|sh|o)$", verb) else "s")
