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

THINGS = """
spare key|bike|umbrella|passport|drill|tent|ladder|sewing machine|old laptop|guitar|stepladder|suitcase|camera
violin|scooter|kayak|toolbox|birth certificate|charger|projector|sledge|waffle iron|binoculars|hiking boots|wedding ring
pressure washer|printer|car|boiler|freezer|mower|bread machine|tablet|watch|sofa|mattress|bookcase|telescope|piano
vaccination card|rain jacket|air pump|steam iron|skis|sleeping bag|pram|cot|barbecue|blender|router|shredder
thermos|globe|typewriter|record player|tripod|fishing rod|saw|inflatable boat|dehumidifier|fan heater|cello
"""
OF_THINGS = [  # what is told of a thing, as a note with its value {v}, and how it is asked for
    [
        "My {t} is behind the {v}.|The {t} lives in the {v}.|I keep the {t} under the {v}.|The {t}: next to the {v}.",
        "where is the {t}|where is my {t}|where did I put the {t}|where do I keep the {t}|where did I leave my {t}",
        "where does the {t} live|where have I got the {t}|I can't find the {t}|the {t}, where is it|where's my {t}",
        "where would I look for the {t}|which place did I give the {t}|I need the {t}, where do I look|find my {t}",
        "where have I stowed the {t}|looking for the {t}|place of the {t}|what did I do with the {t}",
    ],
    [
        "I bought the {t} at {v}.|The {t} is from {v}.|Got my {t} from {v}.|The {t} came from {v}, second hand.",
        "where did I buy the {t}|where is the {t} from|which shop did the {t} come from|where did I get my {t}",
        "who sold me the {t}|shop of the {t}|where could I get another {t} like mine|the {t}, bought where",
    ],
    [
        "The {t} cost {v}.|I paid {v} for the {t}.|{v} for the {t}, too much.|The {t} was {v} in the end.",
        "how much was the {t}|what did the {t} cost|price of my {t}|what did I pay for the {t}|how dear was the {t}",
        "how much did I give for the {t}|what was the {t} worth to me, in money|the {t} set me back how much",
    ],
    [
        "I lent the {t} to {v}.|{v} has my {t}.|{v} borrowed the {t}.|The {t} is at {v}'s until spring.",
        "who has my {t}|who borrowed the {t}|whom did I lend the {t} to|who did I give the {t} to|who's got the {t}",
        "from whom do I want the {t} back|with whom is the {t}|who must return the {t}",
    ],
    [
        "My {t} is a {v}.|The {t} is the {v}.|We have a {v} for a {t}.|Make of the {t}: {v}.",
        "which model is my {t}|what make is the {t}|what kind of {t} have I got|which {t} do I have|brand of my {t}",
        "what sort of {t} is it|who makes my {t}|what's the {t} called, the make",
    ],
    [
        "The guarantee of the {t} ends on {v}.|{v}: end of the {t}'s warranty.|Warranty of the {t} until {v}.",
        "when does the guarantee of the {t} end|how long is the {t} under warranty|{t} warranty until when",
        "till when is the {t} covered|when does the {t}'s warranty run out|is there still warranty on the {t}",
    ],
    [
        "I bought the {t} on {v}.|{v}, the new {t} arrived.|We have had the {t} since {v}.|Got the {t} in {v}.",
        "when did I buy the {t}|how old is the {t}|since when do I have the {t}|when did I get the {t}",
        "when did the {t} come|how long have I had the {t}|the {t}, from when is it",
    ],
    [
        "The code of the {t} is {v}.|{v} opens the {t}.|PIN of the {t}: {v}.|The {t}'s combination is {v}.",
        "what's the code of the {t}|{t} code|how do I unlock the {t}|PIN for my {t}|combination of the {t}",
        "which numbers open the {t}|get into the {t}|the {t} wants a code, which",
    ],
    [
        "My {t} is {v} coloured.|The {t} is {v}.|We painted the {t} {v}.|The colour of the {t} is called {v}.",
        "what colour is the {t}|colour of my {t}|which colour has the {t}|what shade is the {t}",
        "how would I describe the {t}'s colour|in which colour did I take the {t}",
    ],
    [
        "{v} repairs the {t}.|{v} looked at the {t} last time.|For the {t} we call {v}.|{v} fixed the {t}.",
        "who repairs the {t}|who fixed my {t}|who do I call about the {t}|who looks after the {t}",
        "the {t} is broken, who comes|whom do I ring when the {t} fails|who was it that mended the {t}",
    ],
]

DATES = "3 March|May 2027|last Easter|12.10.2025|a Friday in June|2019|the 30th of November|spring 2024"
VALUES = [  # of each of these
    "cupboard on the landing|shed|second drawer|coal cellar|blue trunk|boiler|curtain|jar of rice|attic hatch|bench",
    "Harrow & Sons|the flea market|a catalogue|Pellman's|the corner shop|an auction in Lund|a lady in Frome",
    "40 euros|12.50|£310|ninety crowns|1,250|next to nothing|two hundred and five|17 dollars",
    "Priya|the Novaks|Uncle Bert|our neighbour Jo|Lars from the choir|my cousin|the school|Agnieszka",
    "Kettler 400|Bosch|Raleigh|second-hand Miele|Zenit TTL|Corvo Mark 2|Yamaha|home-made one",
    DATES,
    DATES,
    "4471|nine one six|0-0-3-8|BLUE7|three sevens|52B|my old house number|190",
    "olive|dark red|off-white|mustard|silver|petrol blue|striped|plain wood",
    "Mr. Dunmore|the man in Tiller Street|Ewa|a firm called Brightside|my brother-in-law|Kwame",
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


def relations(rng: random.Random) -> Made:
    """Several things told of each thing, as questions and as notes, asked in many phrasings, with those never told."""
    things = [each for line in THINGS.split("\n")[1:-1] for each in line.split("|")]
    families = [
        (each[0].split("|"), "|".join(each[1:]).split("|"), some.split("|"))
        for each, some in zip(OF_THINGS, VALUES, strict=True)
    ]
    pairs = [(thing, family) for thing in rng.sample(things, 8) for family in rng.sample(families, 4)]
    rng.shuffle(pairs)
    entries, asked = list[Entry](), list[tuple[str, int | None]]()
    for number, (thing, (notes, questions, values)) in enumerate(pairs):
        told, value = number < len(pairs) // 2, rng.choice(values)
        some = rng.sample(questions, 4)
        if told:
            if rng.random() < 0.5:
                entries.append(Entry("", rng.choice(notes).format(t=thing, v=value)))
            else:
                entries.append(Entry(_put(rng, some.pop(), thing, "t"), value))
        asked += [(_put(rng, each, thing, "t"), number if told else None) for each in some[:3]]
    return entries, asked


def _put(rng: random.Random, asked: str, who: str, slot: str = "p") -> str:
    text = asked.format(**{slot: who})
    text = rng.choice([text, text.capitalize()])
    return text if text.endswith("?") else text + rng.choice(["", "?"])


def _value(rng: random.Random) -> str:
    letters = "".join(rng.choice("bcdfglmnprst") + rng.choice("aeiou") for _ in range(3))
    return rng.choice([str(rng.randrange(10, 9999)), letters.title(), f"{letters} {rng.randrange(2, 99)}"])
