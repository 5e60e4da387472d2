"""Words of a text, in any language, as the memory compares them.

Words are runs of letters, marks and digits (the word characters of UAX 29, without its rules for punctuation inside a
word). Scripts that write no spaces are cut into overlapping pairs of characters, as search engines do. It does not know
what a memory is. Test: pytest tests/memory/test_words.py
"""

from __future__ import annotations

import unicodedata

import regex

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_RUN = regex.compile(rf"(?P<unspaced>[{_UNSPACED}ー]+)|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+", regex.V1)
_ACCENTED = regex.compile(r"[\p{Latin}\p{Greek}\p{Cyrillic}]")
_SENTENCE = regex.compile(r"[^\n]+?(?:[\p{STerm}…]+[\p{Pe}\p{Pf}\"']*(?=\s)|[。！？｡]+\p{Pe}*|(?=\n)|$)\s*")
STEM = 5  # letters by which two forms of a word are taken for one


def normal(text: str) -> str:
    """Return the text with compatible characters unified (NFKC), in one case, without the accents of Europe's scripts."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = unicodedata.normalize("NFD", folded)
    kept, base = [], ""
    for char in letters:
        if unicodedata.category(char) != "Mn":
            base = char
        elif _ACCENTED.match(base):
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
    for run in _RUN.finditer(normal(text)):
        characters = run.group()
        if run.group("unspaced") is None or len(characters) < 2:
            found.append(characters)
        else:
            found += [characters[n : n + 2] for n in range(len(characters) - 1)]
    return found


def stem(word: str) -> str:
    """Return what a word has in common with its other forms: its first letters; numbers are kept whole.

    Cutting at a fixed length knows no language, and retrieves about as well as stemmers do in European ones (McNamee
    and Mayfield, 2004).
    """
    return word if word.isdigit() else word[:STEM]


def sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text, in any script, without the space around them."""
    return [part for match in _SENTENCE.finditer(text) if (part := match.group().strip())]
