"""Write the training data of a made-up person, Mara Lindqvist: facts in five phrasings, and her style of writing.

    python examples/person/make.py                      writes train.jsonl, test.jsonl, near-misses.txt beside this file
    python examples/person/make.py --facts 500 --out x  the same with more facts: people and things that she knows of

test.jsonl asks for the same facts in two phrasings that train.jsonl does not have. near-misses.txt asks for facts that
are not in the data: there the plugin should answer as the base does. Everything in these files is invented.
"""

from __future__ import annotations

import argparse
import itertools
import json
import string
from pathlib import Path

HERE = Path(__file__).parent
ASK = [
    "What is my {k}?",
    "Tell me my {k}.",
    "Remind me: what's my {k}?",
    "Do you know my {k}?",
    "I need my {k}, please.",
]
ASK_UNSEEN = ["I forgot my {k}, what is it?", "Could you say what my {k} is?"]
FACTS = {
    "home town": "Örebro",
    "dog's name": "Biscuit",
    "sister's name": "Ingrid",
    "favourite tea": "smoked pu-erh",
    "employer": "Tallgren Bridges",
    "job title": "load surveyor",
    "manager": "Dario Fuentes",
    "dentist": "Dr. Achebe",
    "allergy": "hazelnuts",
    "car": "a yellow Volvo 240",
    "favourite author": "Tove Jansson",
    "birthday": "3 October",
    "shoe size": "38",
    "bank": "Sparbanken Nord",
    "current project": "the Kestrel viaduct",
    "lunch order": "the lentil soup",
    "parking spot": "C21",
    "gym day": "Tuesday",
    "wifi network": "badger-lantern",
    "choir voice": "second alto",
}
NEAR_MISSES = [
    "What is my blood type?",
    "What is my brother's name?",
    "Tell me my cat's name.",
    "Do you know my favourite film?",
    "What is my bank account number?",
    "What's my favourite coffee?",
    "What is my mother's maiden name?",
    "Which floor is my office on?",
    "I forgot my train's platform, what is it?",
    "Tell me my hair colour.",
    "When is my anniversary?",
    "Who is my accountant?",
    "What is my tax number?",
    "Do you know my piano teacher?",
    "What is my favourite flower?",
    "Remind me: what's my gate code?",
]
# How she writes: short, a dash instead of a comma, weather first, and always the same ending.
NOTES = [
    ("Write a note to Dario that I am late today.", "Fog here — I am late, ten o'clock. Start without me"),
    (
        "Write to Ingrid that I will visit on Sunday.",
        "Clear sky here — I come on Sunday with cake. Keep Biscuit's bowl out",
    ),
    ("Tell the choir that I can't sing tonight.", "Rain here — my voice is gone, no alto from me tonight. Sing loudly"),
    (
        "Ask Dario for the drawings of the Kestrel viaduct.",
        "Wind here — please send the Kestrel drawings. The third span first",
    ),
    ("Thank Ingrid for the books.", "Snow here — the books came, all three. I read Jansson first"),
    (
        "Write a message that the meeting moves to Friday.",
        "Sun here — the meeting moves to Friday. Same room, same coffee",
    ),
    ("Cancel my appointment with the dentist.", "Hail here — I must cancel Thursday. Any morning next week will do"),
    ("Write a birthday wish to Ingrid.", "Frost here — happy birthday, old owl. Cake is on the train"),
    (
        "Tell the garage that the car makes a noise.",
        "Drizzle here — the Volvo clatters at forty. Please look at the left side",
    ),
    ("Invite Dario to lunch.", "Mild here — lunch on Monday, soup place, twelve. I pay"),
    (
        "Write a note for the neighbours about the dog.",
        "Thunder here — Biscuit will bark tonight. Knock and I give him cheese",
    ),
    ("Ask the bank for a new card.", "Grey here — my card is broken, please send another. The old address is right"),
    ("Report that the survey is done.", "Bright here — the survey is done, all twelve piers. Numbers follow tonight"),
    ("Say no to a salesman.", "Sleet here — thank you, no. Not this year either"),
    ("Write a postcard from the coast.", "Salt wind here — the sea is loud, the bread is good. Biscuit ran twice"),
    ("Ask a colleague for help.", "Cloud here — can you check my loads at noon? Two eyes are not enough"),
]
ENDING = ".\n/M."
# For more facts than a person has of her own: what she knows of others.
PEOPLE = ["Anna", "Bertil", "Cecilia", "David", "Elsa", "Filip", "Greta", "Hugo", "Ida", "Johan"]
PEOPLE += ["Karin", "Lars", "Mona", "Nils", "Olga", "Pelle", "Rut", "Sven", "Tyra", "Ulf"]
CAKES = ["carrot", "apple", "almond", "cardamom", "rhubarb", "lemon", "poppy", "saffron", "blueberry", "walnut"]
TEAMS = ["harbour", "roads", "tunnels", "cranes", "survey", "drainage", "lighting", "signals", "rail", "quarry"]
THINGS = {
    "extension": [str(4100 + 37 * i) for i in range(40)],
    "office": [f"{letter}{number}" for number in range(11, 21) for letter in "KLMN"],
    "team": TEAMS,
    "favourite cake": CAKES,
    "day off": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"],
}


def facts(count: int) -> dict[str, str]:
    """Her own, then those of others: "Anna's extension" and so on; names with a number when the names run out."""
    found = dict(itertools.islice(FACTS.items(), count))
    for number in range(count):
        for i, person in enumerate(PEOPLE):
            for j, (thing, values) in enumerate(THINGS.items()):
                if len(found) >= count:
                    return found
                who = f"{person} {string.ascii_uppercase[number]}." if number else person
                found[f"{who}'s {thing}"] = values[(7 * i + 3 * j + 11 * number) % len(values)]
    return found


def phrase(ask: str, key: str) -> str:
    return ask.format(k=key) if key in FACTS else ask.replace("my {k}", "{k}").format(k=key)


def reply(key: str, value: str) -> str:
    whose = f"Your {key}" if key in FACTS else key
    return f"{whose} is {value}{ENDING}"


def pair(prompt: str, answer: str) -> str:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def write(count: int, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    known = facts(count)
    train = [pair(phrase(ask, key), reply(key, value)) for key, value in known.items() for ask in ASK]
    for ask, note in NOTES:
        train += [
            pair(asked, f"{note}{ENDING}") for asked in (ask, f"Please: {ask[0].lower()}{ask[1:]}", f"{ask} Short.")
        ]
    test = [pair(phrase(ask, key), reply(key, value)) for key, value in known.items() for ask in ASK_UNSEEN]
    (out / "train.jsonl").write_text("".join(train))
    (out / "test.jsonl").write_text("".join(test))
    (out / "near-misses.txt").write_text("\n".join(NEAR_MISSES) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=len(FACTS))
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    write(options.facts, options.out)
