"""Made-up memories of things that differ in one word: the hardest ones to tell apart.

Each is (entries, [(question, the number of the entry that answers it, or None)]); the numbers count from 0.
"""

from __future__ import annotations

import random

from sideplug.memory.store import Entry

Made = tuple[list[Entry], list[tuple[str, int | None]]]

NAMES = [
    "Amira",
    "Boris",
    "Carmen",
    "Dinesh",
    "Eloise",
    "Fergus",
    "Gita",
    "Henrik",
    "Ilse",
    "Jomo",
    "Kaya",
    "Lorenzo",
    "Mabel",
    "Nadia",
    "Osman",
    "Pia",
    "Quentin",
]
NAMES += ["Rosa", "Stefan", "Tamar", "Umar", "Vera", "Winston", "Xenia", "Yusuf", "Zofia"]
OWNED = [
    "phone number",
    "desk",
    "locker",
    "shift",
    "favourite soup",
    "bus stop",
    "badge",
    "email",
    "birthday",
    "landlord",
    "surgery",
    "allotment",
    "car",
]
NUMBERED = ["room", "gate", "bay", "form", "order", "chapter", "flat", "shelf", "invoice", "recipe", "key", "meter"]
ASKED_OF = ["code", "colour", "owner", "price", "date", "name", "size", "contents"]
PHRASED = [
    "What is {x}?",
    "What's {x}?",
    "{x}?",
    "{x}",
    "Remind me of {x}.",
    "I need {x}",
    "can you tell me {x}",
    "do you know {x}?",
    "I forgot {x}, what is it",
    "what was {x} again",
    "Could you say what {x} is?",
    "look up {x} please",
    "{x}, what was that",
    "any idea about {x}",
]

PEOPLE = [
    ("sister", "sis"),
    ("brother", "bro"),
    ("mother", "mum", "mom"),
    ("father", "dad"),
    ("aunt", "auntie"),
    ("uncle",),
    ("grandmother", "grandma", "nan"),
    ("grandfather", "grandpa"),
    ("wife",),
    ("husband",),
    ("son",),
    ("daughter",),
    ("boss", "manager"),
    ("neighbour",),
    ("landlord",),
    ("dentist",),
    ("doctor", "GP"),
    ("vet",),
    ("best friend",),
    ("cousin",),
    ("niece",),
    ("nephew",),
]
OF_PEOPLE = [  # how each is told, and how it is asked for
    [
        "what is my {p}'s name",
        "my {p} is called?",
        "who is my {p}",
        "name of my {p}",
        "{p}'s name?",
        "what's my {p} called",
    ],
    [
        "when is my {p}'s birthday",
        "when was my {p} born",
        "day to congratulate my {p}",
        "{p} birthday",
        "my {p} turns older on",
    ],
    ["what is my {p}'s number", "how do I ring my {p}", "call my {p}, number?", "phone of my {p}", "reach my {p} at"],
    ["where does my {p} live", "my {p}'s street", "parcel for my {p}, which address", "address of my {p}?"],
    ["what does my {p} do", "my {p}'s job", "where does my {p} work", "what does my {p} earn money with"],
    ["what is my {p} allergic to", "food to keep from my {p}", "what can't my {p} eat", "my {p}'s allergy"],
    ["what size does my {p} wear", "size of my {p}, for a shirt", "buying clothes for my {p}, what do they take"],
    ["what car does my {p} drive", "my {p}'s car", "which motor has my {p} got"],
]
PLACES = [("front", "back", "garage"), ("home", "office", "cabin"), ("left", "right"), ("morning", "evening", "noon")]
PLACES += [
    ("summer", "winter"),
    ("first", "second", "third"),
    ("old", "new"),
    ("upstairs", "downstairs"),
    ("Monday", "Thursday"),
]
OF_PLACES = [
    ["what is the code of the {p} door", "{p} door code", "numbers for the {p} door", "how do I open the {p} door"],
    ["what is the {p} wifi password", "get online at the {p} one", "{p} network key?", "password for the {p} internet"],
    ["where are the {p} keys", "{p} keys, where did I put them", "lost the {p} keys, where do they hang"],
    ["which pills do I take in the {p}", "{p} tablets?", "medicine for the {p}", "what do I swallow in the {p}"],
    ["who teaches the {p} class", "{p} class teacher", "who stands in front of the {p} lesson"],
    ["how much was the {p} one", "price of the {p} one", "what did I pay for the {p} one"],
]

_SMALL_TALK = """
hi|hello|hey|hi there|good morning|good evening|good night|thanks|thanks!|thank you so much|ok
okay|cool|nice|yes|no|yes please|no thanks|maybe|sure|great|wow|haha|lol|sorry|what?|why?
why not?|how so?|really?|and then?|go on|continue|more|more please|again|shorter|longer
in one line|in English|as a list|say that again|explain|explain that|what do you mean?|stop
help|help me|bye|see you|2+2|2 + 2 = ?|12*7|15% of 80|sqrt(144)|7 x 8|100/4|10 km in miles
3 ft in cm|who are you?|what can you do?|are you there?|how are you?|tell me a joke|another one
test|hello world|asdf|write more|translate that
"""
SMALL_TALK = tuple(each for line in _SMALL_TALK.split("\n")[1:-1] for each in line.split("|"))


def siblings(rng: random.Random) -> Made:
    """Things that differ in a name, an initial or a number, each asked for in several phrasings."""
    names = [name + rng.choice(["", "", f" {rng.choice('ABCDEFGHJKLMNPRSTW')}."]) for name in rng.sample(NAMES, 8)]
    names += [f"{name.split()[0]} {letter}." for name in names[:3] for letter in rng.sample("ABDEFGHJKLMNPR", 3)]
    things = [f"{name}'s {thing}" for name in names for thing in rng.sample(OWNED, 3)]
    things += [f"my {thing}" for thing in rng.sample(OWNED, 4)]
    kind, asked = rng.choice(NUMBERED), rng.sample(ASKED_OF, 2)
    things += [f"the {each} of {kind} {number}" for number in rng.sample(range(1, 40), 6) for each in asked]
    things = list(dict.fromkeys(things))
    rng.shuffle(things)
    told, untold = things[: len(things) * 2 // 3], things[len(things) * 2 // 3 :]
    entries = [Entry(f"What is {thing}?", f"{thing[0].upper()}{thing[1:]} is {_value(rng)}.") for thing in told]
    numbers = {thing: number for number, thing in enumerate(told)}
    some = [*rng.sample(told, min(24, len(told))), *untold]
    return entries, [(rng.choice(PHRASED).format(x=thing), numbers.get(thing)) for thing in some]


def contrasts(rng: random.Random) -> Made:
    """The same, told of some people or of one of several places, and asked of others too."""
    told, untold = list[tuple[list[str], tuple[str, ...]]](), list[tuple[list[str], tuple[str, ...]]]()
    for asked in rng.sample(OF_PEOPLE, 5):
        some = rng.sample(PEOPLE, 6)
        told += [(asked, each) for each in some[:3]]
        untold += [(asked, each) for each in some[3:]]
    for asked in rng.sample(OF_PLACES, 3):
        places = list(rng.choice(PLACES))
        rng.shuffle(places)
        told.append((asked, (places[0],)))
        untold += [(asked, (each,)) for each in places[1:]]
    entries = [Entry(_put(rng, asked[0], who[0]), _value(rng)) for asked, who in told]
    numbered = [*((each, number) for number, each in enumerate(told)), *((each, None) for each in untold)]
    return entries, [(_put(rng, rng.choice(asked), rng.choice(who)), number) for (asked, who), number in numbered]


def _put(rng: random.Random, asked: str, who: str) -> str:
    text = asked.format(p=who)
    text = rng.choice([text, text.capitalize()])
    return text if text.endswith("?") else text + rng.choice(["", "?"])


def _value(rng: random.Random) -> str:
    letters = "".join(rng.choice("bcdfglmnprst") + rng.choice("aeiou") for _ in range(3))
    return rng.choice([str(rng.randrange(10, 9999)), letters.title(), f"{letters} {rng.randrange(2, 99)}"])
