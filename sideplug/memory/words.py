"""Words of a text, in any language, as the memory compares them.

Words are runs of letters, marks and digits (the word characters of UAX 29, without its rules for punctuation inside a
word). Scripts that write no spaces are cut into overlapping pairs of characters, as search engines do. It does not know
what a memory is. Test: pytest tests/memory/test_words.py
"""

from __future__ import annotations

import itertools
import re
import unicodedata

# Scripts that write no spaces between words: Han, Hiragana, Katakana, Thai, Lao, Myanmar, Khmer.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_RUN = re.compile(f"(?P<unspaced>[{_UNSPACED}]+)|[^{_UNSPACED} ]+")
_ACCENTED = ("LATIN", "GREEK", "CYRILLIC")  # scripts whose accents do not tell words apart here
_CLOSING = "\"'”’»)\\]』」"
_STOPS, _WIDE = ".!?…؟۔।॥።", "。！？｡"
_END = re.compile(rf"(?<![{_STOPS}])[{_STOPS}]+[{_CLOSING}]*(?=\s)|[{_WIDE}]+[{_CLOSING}]*|\n")  # of a sentence
_INITIAL = re.compile(r"(?P<name>[^\W\d_]{2,})\s+(?P<letter>[^\W\d_])\.")
STEM = 5  # letters by which two forms of a word are taken for one


def normal(text: str) -> str:
    """Return the text in one case, compatible characters unified (NFKC), without the accents of Europe's scripts."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = unicodedata.normalize("NFD", folded)
    kept, base = [], ""
    for char in letters:
        if unicodedata.category(char) != "Mn":
            base = char
        elif unicodedata.name(base, "").startswith(_ACCENTED):
            continue
        kept.append(char)
    return unicodedata.normalize("NFC", "".join(kept))


def words(text: str) -> list[str]:
    """Return the words of a text in their order, normalised.

    >>> words("Mum's café, at 14:30")
    ['mum', 's', 'cafe', 'at', '14', '30']
    >>> words("犬の名前")
    ['犬の', 'の名', '名前']
    """
    found: list[str] = []
    plain = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in normal(text))
    for run in _RUN.finditer(plain):
        characters = run.group()
        if run.group("unspaced") is None or len(characters) < 2:
            found.append(characters)
        else:
            found += [characters[n : n + 2] for n in range(len(characters) - 1)]
    return found


def initials(text: str) -> list[tuple[str, str]]:
    """Return the names with an initial behind them, as their two words.

    >>> initials("Is Anna S. taller than Bo?")
    [('anna', 's')]
    """
    found = _INITIAL.finditer(text)
    return [(normal(match["name"]), normal(match["letter"])) for match in found if match["letter"].isupper()]


def is_of_another(named: list[tuple[str, str]], text: str) -> bool:
    """Return whether a text has one of these names without its initial: it is about somebody else.

    >>> is_of_another([("anna", "s")], "Anna B. lives in Hamar."), is_of_another([("anna", "s")], "Anna S lives here.")
    (True, False)
    """
    plain = normal(text) if named else ""
    return any(
        re.search(rf"(?<!\w){name}(?!\w)", plain) and not re.search(rf"(?<!\w){name}\s+{letter}(?!\w)", plain)
        for name, letter in named
    )


def stem(word: str) -> str:
    """Return what a word has in common with its other forms: its first letters; numbers are kept whole.

    Cutting at a fixed length knows no language, and retrieves about as well as stemmers do in European ones (McNamee
    and Mayfield, 2004).
    """
    return word if word.isdigit() else word[:STEM]


def sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text, in any script, without the space around them."""
    ends = [0, *(match.end() for match in _END.finditer(text)), len(text)]
    return [part for start, end in itertools.pairwise(ends) if (part := text[start:end].strip())]
