"""A mail's own words, and those that it answers: without quoted lines, signatures, forwarded mails, footers of lists.

It works on the body as text, by the marks that programs of the time wrote. It does not know whose mail it is.
Test: pytest tests/bench/test_mails.py
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# From here on nothing is the writer's own.
_ENDS = re.compile(
    r"""^(?:
      --\s*                                                  # a signature
    | -+\s*BEGIN\ PGP\ SIGNATURE\s*-+
    | _{20,}\s*                                              # a footer of a list
    | -{4,}\s*Yahoo!\ Groups.*
    | This\ (?:sf\.net|message\ was\ sent|e?mail\ is\ sponsored).*
    | To\ (?:un)?subscribe\b.*
    | (?:https?|ftp)://\S+/(?:mailman/)?listinfo/\S+\s*
    )$""",
    re.IGNORECASE | re.VERBOSE,
)
# What follows is another's mail: all of it, unless its lines are marked as quoted.
_ORIGINAL = re.compile(r"^[\s>]*-{2,}\s*Original Message\s*-{2,}\s*$", re.IGNORECASE)
_FORWARDED = re.compile(r"^-{2,}\s*(?:begin\s+)?forwarded\b.*$", re.IGNORECASE)
_FORWARDED_END = re.compile(r"^-{2,}\s*end\s+(?:of\s+)?forwarded\b.*$", re.IGNORECASE)
_HEAD = re.compile(r"^\s*(?:From|To|Cc|Sent|Date|Subject|Reply-To|Message-ID|Importance)\s*:", re.IGNORECASE)
_MARK = r"(?:>|--\]|[|:}](?=\s)|\s{0,5}[A-Za-z]{1,12}>(?=\s|$))"  # "> …", "Anna> …", and marks of single writers
_QUOTED = re.compile(rf"^\s{{0,3}}{_MARK}")
_NESTED = re.compile(rf"^\s{{0,3}}{_MARK}\s?{_MARK}")
_WROTE = re.compile(
    r"(?:\b(?:wrote|writes|write|said|says|schrieb|scribbled|mentioned)\b|thought to have said)\s*:?\s*(?:\.{3})?$",
    re.IGNORECASE,
)
_NAMED = re.compile(r"^\s*(?:\[[^\]]{2,40}\]|[A-Z][\w.'-]*(?: [\w.'\"-]+){0,4}:)\s*$")  # "[Anna Berg]", "Anna Berg:"
_ARMOUR = re.compile(r"^(?:-+BEGIN PGP SIGNED MESSAGE-+|Hash: \w+)\s*$")
_ADDRESS = re.compile(r"<?(?:mailto:)?[\w.+=-]+@[\w-]+(?:\.[\w-]+)+>?", re.IGNORECASE)
_RULE = re.compile(r"^\s*[-=_*~]{4,}\s*$")


@dataclass(frozen=True)
class Words:
    """own: what the writer wrote. quoted: what it answers, without marks; "" for a mail that answers nothing."""

    own: str
    quoted: str


def words_of(body: str) -> Words:
    """Return the own words of a mail's body and the words that it quotes; addresses in them are left out."""
    own, quoted = list[str](), list[str]()
    lines = _whole_attributions(_without_forwarded(body.replace("\r\n", "\n").split("\n")))
    at = 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if _ENDS.match(line):
            break
        if _ORIGINAL.match(line):
            while at < len(lines) and (_HEAD.match(lines[at]) or re.match(r"[ \t]+\S", lines[at])):
                at += 1
            if not any(_QUOTED.match(each) for each in lines[at:]):
                quoted += lines[at:]
                break
        elif _QUOTED.match(line):
            words = _QUOTED.sub("", line).removeprefix(" ")
            if not (_NESTED.match(line) or _WROTE.search(words) or _HEAD.match(words) or _ORIGINAL.match(words)):
                quoted.append(words)
        elif not _ARMOUR.match(line) and not _is_attribution(line, lines[at:]):
            own.append(line)
    return Words(_plain(own), _plain(quoted))


def _without_forwarded(lines: list[str]) -> list[str]:
    """Return the lines without what stands between the marks of a forwarded mail; without an end all the rest goes."""
    kept, inside = list[str](), False
    for line in lines:
        if inside:
            inside = not _FORWARDED_END.match(line)
        elif _FORWARDED.match(line):
            inside = True
        else:
            kept.append(line)
    return kept


def _whole_attributions(lines: list[str]) -> list[str]:
    """Return the lines with "On … \\n … wrote:", which a program broke, as one."""
    joined = list[str]()
    for line in lines:
        broken = joined and re.match(r"(?:On|At|In|Quoting)\s", joined[-1]) and not _WROTE.search(joined[-1])
        if broken and _WROTE.search(line) and not _QUOTED.match(line) and len(joined[-1]) + len(line) < 200:
            joined[-1] = f"{joined[-1]} {line.strip()}"
        else:
            joined.append(line)
    return joined


def _is_attribution(line: str, after: list[str]) -> bool:
    """Return whether a line says who wrote what is quoted below it."""
    follows = next((each for each in after if each.strip()), "")
    below = bool(_QUOTED.match(follows) or _HEAD.match(follows) or _ORIGINAL.match(follows))
    named = below and bool(_NAMED.match(line))
    return named or (bool(_WROTE.search(line)) and len(line) < 200 and (below or "@" in line))


def _plain(lines: list[str]) -> str:
    """Return lines as text: no addresses, no rules, no blank lines at its ends, one between paragraphs."""
    text = "\n".join(line.rstrip() for line in lines if not _RULE.match(line))
    text = _ADDRESS.sub("", text).replace("\ufffd", "").replace("\t", " ")
    return re.sub(r"\n{3,}", "\n\n", text).strip()
