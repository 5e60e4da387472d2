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
violin|scooter|kayak|toolbox|birth certificate|charger|projector|sledge
waffle iron|binoculars|hiking boots|wedding ring
pressure washer|printer|car|boiler|freezer|mower|bread machine|tablet|watch|sofa|mattress|bookcase|telescope|piano
vaccination card|rain jacket|air pump|steam iron|skis|sleeping bag|pram|cot|barbecue|blender|router|shredder
thermos|globe|typewriter|record player|tripod|fishing rod|saw|inflatable boat|dehumidifier|fan heater|cello
"""
OF_THINGS = [  # what is told of a thing, as a note with its value {v}; behind the empty line, how it is asked for
    [
        "My {t} is {v}.|The {t} lives {v}.|I keep the {t} {v}.|The {t}: {v}.|The {t} hangs {v}.|The {t} stands {v}.",
        "The {t} lies {v}.|My {t} sits {v}.|The {t} is kept {v}.|I put the {t} {v}.|I left my {t} {v}.|{t}, {v}.",
        "We store the {t} {v}.|The {t} goes {v}.|The {t} is hidden {v}.|The {t} leans {v}.|I hid the {t} {v}.",
        "You find the {t} {v}.|The {t} belongs {v}.|The {t} stays {v}.|I always drop my {t} {v}.|{v} is the {t}.",
        "",
        "where is the {t}|where is my {t}|where did I put the {t}|where do I keep the {t}|where did I leave my {t}",
        "where does the {t} live|where have I got the {t}|I can't find the {t}|the {t}, where is it|where's my {t}",
        "where would I look for the {t}|which place did I give the {t}|I need the {t}, where do I look|find my {t}",
        "where have I stowed the {t}|looking for the {t}|place of the {t}|what did I do with the {t}|where's the {t}",
        "where does the {t} hang|where is the {t} kept|where does the {t} stand|where did I hide the {t}|my {t}?",
        "where do we store the {t}|where does the {t} belong|I've lost the {t}",
        "have you seen my {t}|fetch the {t} where",
    ],
    [
        "I bought the {t} at {v}.|We ordered the {t} at {v}.|The {t} is from {v}.",
        "Got my {t} from {v}.|The {t} came from {v}, second hand.",
        "",
        "where did I buy the {t}|where is the {t} from|which shop did the {t} come from|where did I get my {t}",
        "who sold me the {t}|shop of the {t}|where could I get another {t} like mine|the {t}, bought where",
    ],
    [
        "The {t} cost {v}.|I paid {v} for the {t}.|{v} for the {t}, too much.|The {t} was {v} in the end.",
        "",
        "how much was the {t}|what did the {t} cost|price of my {t}|what did I pay for the {t}|how dear was the {t}",
        "how much did I give for the {t}|what was the {t} worth to me, in money|the {t} set me back how much",
    ],
    [
        "I lent the {t} to {v}.|{v} has my {t}.|{v} borrowed the {t}.",
        "The {t} is at {v}'s until spring.|Gave {v} the {t}.",
        "{v} came for the {t}.|{v} took the {t} home.|{v} wanted the {t} for a week.|My {t} went to {v}.",
        "",
        "who has the {t}|who has my {t}|who borrowed the {t}|whom did I lend the {t} to",
        "who did I give the {t} to|who's got the {t}",
        "from whom do I want the {t} back|with whom is the {t}|who must return the {t}",
    ],
    [
        "My {t} is a {v}.|The {t} is the {v}.|We have a {v} for a {t}.|Make of the {t}: {v}.",
        "",
        "which model is my {t}|what make is the {t}|what kind of {t} have I got|which {t} do I have|brand of my {t}",
        "what sort of {t} is it|who makes my {t}|what's the {t} called, the make",
    ],
    [
        "The guarantee of the {t} ends on {v}.|{v}: end of the {t}'s warranty.|Warranty of the {t} until {v}.",
        "",
        "when does the guarantee of the {t} end|how long is the {t} under warranty|{t} warranty until when",
        "till when is the {t} covered|when does the {t}'s warranty run out|is there still warranty on the {t}",
    ],
    [
        "I bought the {t} on {v}.|{v}, the new {t} arrived.|We have had the {t} since {v}.|Got the {t} in {v}.",
        "",
        "when did I buy the {t}|how old is the {t}|since when do I have the {t}|when did I get the {t}",
        "when did the {t} come|how long have I had the {t}|the {t}, from when is it",
    ],
    [
        "The code of the {t} is {v}.|{v} opens the {t}.|PIN of the {t}: {v}.|The {t}'s combination is {v}.",
        "",
        "what's the code of the {t}|{t} code|how do I unlock the {t}|PIN for my {t}|combination of the {t}",
        "which numbers open the {t}|get into the {t}|the {t} wants a code, which",
    ],
    [
        "My {t} is {v} coloured.|The {t} is {v}.|We painted the {t} {v}.|The colour of the {t} is called {v}.",
        "",
        "what colour is the {t}|colour of my {t}|which colour has the {t}|what shade is the {t}",
        "how would I describe the {t}'s colour|in which colour did I take the {t}",
    ],
    [
        "{v} repairs the {t}.|{v} looked at the {t} last time.|For the {t} we call {v}.|{v} fixed the {t}.",
        "",
        "who repairs the {t}|who fixed my {t}|who do I call about the {t}|who looks after the {t}",
        "the {t} is broken, who comes|whom do I ring when the {t} fails|who was it that mended the {t}",
    ],
]

DATES = "3 March|May 2027|last Easter|12.10.2025|a Friday in June|2019|the 30th of November|spring 2024"
NOUNS = """
clock|stove|piano|mirror|bread bin|flowerpot|radiator|fridge|kettle|sofa
bookshelf|washing machine|garden gate|bathtub|basket
wardrobe|window sill|doormat|fireplace|coat rack|letterbox|toolbox|dresser|chimney
bucket|barrel|biscuit tin|teapot|globe
picture of the sea|calendar|lamp|rug|cushion|desk|printer|aquarium|birdcage|wine rack
freezer|oven|dustbin|compost heap|greenhouse
hen house|woodpile|water butt|fuse box|meter|router|television|armchair
cradle|chest|hat stand|umbrella stand|glove compartment
boot of the car|saddlebag|rucksack|sewing basket|button box|jewellery case|safe
drawer with the forks|spice rack|egg box|vase
cactus|rubber plant|dog's bed|cat flap|stairs|banister|attic|cellar|pantry|larder|porch
balcony|hall|landing|nursery|study|loft
laundry|tub of flour|box of nails|stack of plates|pile of towels|blanket|curtain rail
dictionary|atlas|cookbook|phone book
record player|trumpet case|football|skis|tent|ladder|wheelbarrow|mower|rake|hedge
pear tree|well|bench|statue|shed roof|drainpipe
"""
SOMEBODY = """
Tove|Ngozi|Bartek|Ludmila|Rashid|Oona|Piet|Saoirse|Yuki|Esperanza|Milan|Thandi
Gwen|Ismail|Katja|Dario|Hye-jin|Olu|Brigid
Vikram|Anneli|Casper|Fatou|Jorge|Linnea|Mehmet|Nuala|Pavel|Renske|Sanjay|Tilda|Ugo|Wanda
Ximena|Yael|Zdenka|Ake|Berit|Chidi|Dunja
Einar|Farah|Goran|Hilde|Ivo|Jasmin|Kofi|Liesl|Marta|Nils|Odile|Petra|Raul|Signe
Tomasz|Una|Valentin|Willem|Yara|Zoltan|Aunt Peg
Uncle Ned|Mrs. Farrow|Mr. Okafor|the Hendersons|old Tom|my neighbour Ruth
cousin Leo|the caretaker|the postman|the twins next door
my brother|her sister|the boy from number nine|our landlady|the choir|the scouts
the library|the kindergarten|the rowing club
"""
PLACES_OF_THINGS = (
    "behind the {n}|in the {n}|under the {n}|next to the {n}|on the {n}|above the {n}|by the {n}|inside the {n}|"
    "beside the {n}|between the {n} and the {n}|below the {n}|at {N}'s|near the {n}|outside, by the {n}|over the {n}|"
    "on a hook by the {n}|in a tin on the {n}|upstairs, in the {n}|left of the {n}|with {N}"
)
VALUES = [  # of each of these; {n}: a noun, {N}: somebody
    PLACES_OF_THINGS,
    "Harrow & Sons|the flea market|a catalogue|Pellman's|the corner shop|an auction in Lund|"
    "{N}|{N}'s shop|a stall by the {n}",
    "40 euros|12.50|£310|ninety crowns|1,250|next to nothing|two hundred and five|17 dollars",
    "{N}",
    "Kettler 400|Bosch|Raleigh|second-hand Miele|Zenit TTL|Corvo Mark 2|Yamaha|home-made one",
    DATES,
    DATES,
    "4471|nine one six|0-0-3-8|BLUE7|three sevens|52B|my old house number|190",
    "olive|dark red|off-white|mustard|silver|petrol blue|striped|plain wood",
    "{N}|the man in Tiller Street|a firm called Brightside",
]

OF_KIN = [  # the same of people
    [
        "My {p} is called {v}.|{v} is my {p}.|My {p}'s name is {v}.|My {p}, {v}, rang today.",
        "",
        "what is my {p}'s name|what's my {p} called|who is my {p}|name of my {p}|how is my {p} called|my {p}'s name",
    ],
    [
        "My {p} was born on {v}.|My {p}'s birthday is {v}.|{v}: birthday of my {p}.|We sing for my {p} on {v}.",
        "",
        "when is my {p}'s birthday|when was my {p} born|day to congratulate my {p}|my {p}'s date of birth",
        "when must I bake a cake for my {p}|on which day did my {p} come into the world|how old is my {p}",
    ],
    [
        "My {p} lives in {v}.|My {p} moved to {v}.|{v} is where my {p} lives.|My {p} has a flat in {v}.",
        "",
        "where does my {p} live|my {p}'s town|address of my {p}|where did my {p} move|where would I visit my {p}",
    ],
    [
        "My {p} works as a {v}.|My {p} is a {v}.|My {p} became a {v}.|My {p} earns a living as a {v}.",
        "",
        "what does my {p} do|my {p}'s job|what does my {p} work as|profession of my {p}|what did my {p} become",
    ],
    [
        "My {p} can't eat {v}.|My {p} is allergic to {v}.|No {v} for my {p}.|{v} makes my {p} ill.",
        "",
        "what is my {p} allergic to|what can't my {p} eat|my {p}'s allergy|what must I not cook for my {p}",
        "which food makes my {p} ill|what should I keep from my {p}",
    ],
    [
        "My {p} wants {v} for Christmas.|My {p} would love {v}.|Get my {p} {v}.",
        "My {p} collects {v}.|My {p} likes {v}.",
        "",
        "what does my {p} want|what could I give my {p}|a present for my {p}|what does my {p} like|gift for my {p}",
    ],
    [
        "My {p} drives a {v}.|The {v} belongs to my {p}.|My {p} came in a {v}.|My {p} bought a {v}.",
        "",
        "what car does my {p} drive|my {p}'s car|which car has my {p} got|what does my {p} drive",
    ],
    [
        "My {p} arrives at {v}.|I meet my {p} at {v}.|{v}: lunch with my {p}.|My {p} comes by at {v}.",
        "",
        "when do I meet my {p}|when does my {p} arrive|when is my {p} coming|what time do I see my {p}",
        "at what hour is my {p} here|when must I be ready for my {p}",
    ],
]
KIN_VALUES = [
    "{N}|Ottilie|Marek|Sunniva",
    DATES,
    "Bergen|a village near Porto|Mill Road|Graz|the islands|Leith|Utrecht|the old station house",
    "baker|nurse|welder|notary|bus driver|midwife|tree surgeon|translator|cook",
    "shellfish|nuts|eggs|wheat|strawberries|celery|milk|mustard",
    "a fountain pen|stamps|wool socks|old maps|opera tickets|a new {n}|a {n}|anything with a {n} on it",
    "green van|Skoda|two-seater|camper|Fiat from 1998|pickup|hearse|electric Kia",
    "half past six|noon on Tuesday|9 o'clock|quarter to four|the 17:20 train|dawn|tea time on Sunday",
]
OF_ME = [  # and of the person: {v} is told, nothing is left open
    ["I am allergic to {v}.|I can't eat {v}.|No {v} for me.", "", "what am I allergic to|what can't I eat|my allergy"],
    ["I work at {v}.|My employer is {v}.|I joined {v} last year.", "", "where do I work|who employs me|my firm|my job"],
    ["My blood group is {v}.|I have blood group {v}.", "", "what's my blood group|which blood do I have|my blood type"],
    ["I take my coffee {v}.|Coffee for me: {v}.", "", "how do I drink my coffee|my coffee|how do I like coffee"],
    ["I grew up in {v}.|I was born in {v}.|I come from {v}.", "", "where did I grow up|where am I from|my home town"],
    ["My shoe size is {v}.|I wear shoes of size {v}.", "", "what shoe size do I have|my shoe size|size of my shoes"],
    ["I play {v} on Mondays.|{v} is my hobby.|I took up {v}.", "", "what do I play|what's my hobby|what did I take up"],
    [
        "We fly to {v} in summer.|Our holiday: {v}.|We booked {v}.",
        "",
        "where do we fly|where is our holiday|what did we book",
    ],
    ["The rent is {v} a month.|I pay {v} of rent.", "", "how much is the rent|what do I pay for the flat|my rent"],
    [
        "The bins go out on {v}.|{v} is bin day.|Rubbish: {v}.",
        "",
        "when do the bins go out|bin day|when is rubbish fetched",
    ],
    [
        "The plumber comes on {v}.|{v}: plumber.",
        "",
        "when does the plumber come|day of the plumber|when is the plumber here",
    ],
    [
        "Our dog is called {v}.|{v} is our dog.|We named the dog {v}.",
        "",
        "what's the dog's name|our dog|how is the dog called",
    ],
    ["The meeting moved to {v}.|We meet on {v} now.", "", "when is the meeting|when do we meet|day of the meeting now"],
    ["I owe Priya {v}.|Priya lent me {v}.", "", "what do I owe Priya|how much did Priya lend me|my debt to Priya"],
    ["My favourite film is {v}.|I like {v} best of all films.", "", "which film do I like best|my favourite film"],
    [
        "I studied {v}.|My degree is in {v}.|I did {v} at college.",
        "",
        "what did I study|my degree|my subject at college",
    ],
]
MY_VALUES = [
    "kiwi|penicillin|cats|latex|peanuts",
    "Brightside|a bakery in Hove|the council|Tolman & Daughters",
    "0 negative|A positive|AB|B",
    "black|with oat milk|with two sugars|cold",
    "Lublin|Cork|a farm in Kent|Santander|Goa",
    "41|38|6 and a half|45",
    "the oboe|badminton|chess|pottery|the tuba",
    "Crete|Madeira|Iceland|Split",
    "840 euros|£1,100|six hundred|9,500 crowns",
    "Thursday|every other Monday|Wednesday morning",
    DATES,
    "Biscuit|Rufus|Olga|Pepper|Miss Bean",
    "Tuesday at ten|the 14th|Friday afternoon|next month",
    "forty pounds|a fiver|200 euros",
    "Paddington|Alien|The Third Man|Spirited Away",
    "geology|law|music and maths|nursing",
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
    pairs = [(thing, family) for thing in rng.sample(things, 8) for family in rng.sample(_told(OF_THINGS, VALUES), 4)]
    return _related(rng, pairs, "t")


def kin(rng: random.Random) -> Made:
    """The same, told of people and of the person."""
    some = rng.sample(PEOPLE, 5)
    pairs = [(rng.choice(who), family) for who in some for family in rng.sample(_told(OF_KIN, KIN_VALUES), 4)]
    return _related(rng, [*pairs, *(("", family) for family in _told(OF_ME, MY_VALUES))], "p")


Family = tuple[list[str], list[str], list[str]]  # notes, questions, values


def _told(families: list[list[str]], values: list[str]) -> list[Family]:
    told = []
    for each, some in zip(families, values, strict=True):
        ends = each.index("")
        told.append(("|".join(each[:ends]).split("|"), "|".join(each[ends + 1 :]).split("|"), some.split("|")))
    return told


def _related(rng: random.Random, pairs: list[tuple[str, Family]], slot: str) -> Made:
    rng.shuffle(pairs)
    entries, asked = list[Entry](), list[tuple[str, int | None]]()
    for number, (what, (notes, questions, values)) in enumerate(pairs):
        told, value = number < len(pairs) // 2, _filled(rng, rng.choice(values))
        some = rng.sample(questions, min(4, len(questions)))
        if told:
            if rng.random() < 0.6:
                note = rng.choice(notes).format(**{slot: what, "v": value})
                entries.append(Entry("", note[0].upper() + note[1:]))
            else:
                entries.append(Entry(_put(rng, some.pop(), what, slot), value))
        asked += [(_put(rng, each, what, slot), number if told else None) for each in some[:3]]
    return entries, asked


def _filled(rng: random.Random, value: str) -> str:
    """A value with nouns and people in its gaps: with few values a verifier would learn which ones are answers."""
    for gap, text in (("{n}", NOUNS), ("{N}", SOMEBODY)):
        every = [each for line in text.split("\n")[1:-1] for each in line.split("|")]
        while gap in value:
            value = value.replace(gap, rng.choice(every), 1)
    return value


def _put(rng: random.Random, asked: str, who: str, slot: str = "p") -> str:
    text = asked.format(**{slot: who})
    text = rng.choice([text, text.capitalize()])
    return text if text.endswith("?") else text + rng.choice(["", "?"])


def _value(rng: random.Random) -> str:
    letters = "".join(rng.choice("bcdfglmnprst") + rng.choice("aeiou") for _ in range(3))
    return rng.choice([str(rng.randrange(10, 9999)), letters.title(), f"{letters} {rng.randrange(2, 99)}"])
