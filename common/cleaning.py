"""From raw text, as found on the web, to plain text, paragraphs, sentences and word counts. Pure functions of strings.

It is not a tokenizer: words and punctuation are left as they are written. `common.corpus` calls it.
"""

import re
import unicodedata
from html import unescape

_LINE_BREAK = re.compile(r"<br\b[^<>]*>", re.IGNORECASE)
_BLOCK_TAG = re.compile(r"</?(?:p|div|li|[uo]l|hr|h[1-6]|table|t[rdh]|blockquote|pre)\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"<!--.*?-->|</?[a-z][a-z0-9-]*(?:\s[^<>]*)?/?>", re.IGNORECASE | re.DOTALL)
_HTML = re.compile(r"[<&]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_WORD = re.compile(r"\w\S*")


def _folds() -> dict[int, str]:
    """Windows-1252 bytes that were read as Latin-1, typographic quotes and ellipses, invisible characters."""
    folds: dict[int, str] = {}
    for code in set(range(0x80, 0xA0)) - {0x81, 0x8D, 0x8F, 0x90, 0x9D}:
        folds[code] = bytes([code]).decode("cp1252")
    plain = {"'": "‘’‚‛´", '"': "“”„‟«»", "...": "…", "": "\u00ad\u200b\u2060\ufeff"}
    plain_of = {mark: to for to, marks in plain.items() for mark in marks}
    folds |= {code: plain_of.get(mark, mark) for code, mark in folds.items()}
    return folds | {ord(mark): to for mark, to in plain_of.items()}


_FOLDS = _folds()

# Words whose full stop does not end a sentence: never, before a number, or before anything but a capital.
_TITLES = (
    "mr|mrs|ms|dr|prof|messrs|mme|mlle|st|mt|sgt|lt|capt|cpt|col|gen|gov|sen|rep|rev|hon|vs|cf|approx|e\\.?g|i\\.?e"
)
_BEFORE_NUMBER = re.compile(r"(?:^|\W)(?:nos?|vol|pp?|ch|fig|ep|pt|\d)\s?$", re.IGNORECASE)
_NEVER_END = re.compile(rf"(?:^|[^\w'])(?:{_TITLES})\s?$", re.IGNORECASE)
_BEFORE_CAPITAL = re.compile(
    r"(?:^|[^\w'])(?:etc|inc|ltd|co|corp|bros|jr|sr|dept|est|ft|feat|sept|oct|nov|dec|jan|feb|aug)\s?$", re.IGNORECASE
)
_INITIAL = re.compile(r"(?:^|[^\w'])[a-z]\s?$", re.IGNORECASE)
_SENTENCE_OPENER = re.compile(
    r"(?:The|This|That|These|There|Then|They|It|Its|It's|I|I'm|I've|He|She|We|You|But|And|So|If|In|On|At|As|A|An|My|His"
    r"|Her|Not|No|One|When|What|Why|Who|How|While|With|Also|Although|Even|For|From|All|Some|Most|After|Overall)\b"
)

# One or more end marks, blanks between them allowed, and the quotes and brackets that close after them; then a blank,
# the end, or (as careless writers do) directly a capital.
_END = re.compile(r"(?P<mark>[.!?…](?:\s?[.!?…])*)(?P<close>[\"')\]]*)(?=(?P<gap>\s|$)|[A-Z][a-z' ])")
_LETTERS = re.compile(r"[^\W\d_]+")
_LEFT_CONTEXT = 9  # characters: the longest abbreviation, a blank and what stands before it
_RIGHT_CONTEXT = 12  # characters: enough to know the first word of what follows


def paragraphs(raw: str) -> list[str]:
    """Plain-text paragraphs, none empty: without tags, entities, control characters or runs of whitespace.

    Two line breaks (`<br /><br />`, an empty line) or a block tag end a paragraph; a single one is a blank.
    Typographic quotes and ellipses become ASCII; other characters are kept, in Unicode's composed form (NFC).
    """
    text = raw
    if _HTML.search(text):
        text = unescape(text)
        text = _LINE_BREAK.sub("\n", text)
        text = _BLOCK_TAG.sub("\n\n", text)
        text = _TAG.sub("", text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(_FOLDS)
    text = _CONTROL.sub(" ", text)
    flat = (" ".join(part.split()) for part in _PARAGRAPH_END.split(text))
    return [part for part in flat if part]


def clean(raw: str) -> str:
    r"""The whole document as one line of plain text.

    >>> clean("Great&nbsp;film!<br /><br />See <i>it</i>\x85  twice.")
    'Great film! See it... twice.'
    """
    return " ".join(paragraphs(raw))


def count_words(text: str) -> int:
    """Pieces between blanks that hold a letter or a digit: `it 's , well -- good` has 4."""
    return len(_WORD.findall(text))


def chunks(document: str, max_words: int) -> list[str]:
    """Cut a cleaned document into pieces of `max_words` blank-separated words; the last one may be shorter."""
    words = document.split()
    return [" ".join(words[i : i + max_words]) for i in range(0, len(words), max_words)]


def holds_any(text: str, words: frozenset[str]) -> bool:
    """Whether one of the words, given in lower case, stands in the text as a whole word."""
    return not words.isdisjoint(_LETTERS.findall(text.lower()))


def sentences(paragraph: str) -> list[str]:
    """Cut a cleaned paragraph at sentence ends; joined with blanks the pieces give the paragraph, end marks included.

    Abbreviations (`Mr.`, `e.g.`), initials (`J. R. R.`), decimals (`2 . 5`) and ellipses before a small letter do not
    end a sentence, nor does an end mark inside a quotation that the sentence goes on after. Texts whose punctuation
    stands between blanks are cut alike.
    """
    pieces: list[str] = []
    start = 0
    for match in _END.finditer(paragraph):
        if match.end() <= start:
            continue
        end = _after_closer(paragraph, start, match)
        if _ends_sentence(paragraph, start, end, match):
            _append(pieces, paragraph[start:end].strip())
            start = end
    _append(pieces, paragraph[start:].strip())
    return pieces


def _append(pieces: list[str], piece: str) -> None:
    """Marks without a word, such as a late bracket, belong to the sentence before them."""
    if pieces and not _WORD.search(piece):
        pieces[-1] = f"{pieces[-1]} {piece}".rstrip()
    elif piece:
        pieces.append(piece)


def _after_closer(text: str, start: int, match: re.Match[str]) -> int:
    """Where the sentence would end: a bracket or quote that closes apart, as in `he came . "`, is taken along."""
    end = match.end()
    apart, beyond = text[end : end + 2], text[end + 2 : end + 3]
    closes = apart in (" )", " ]") or (apart == ' "' and text.count('"', start, end) % 2 == 1)
    return end + 2 if closes and beyond in ("", " ") else end


def _ends_sentence(text: str, start: int, end: int, match: re.Match[str]) -> bool:
    mark, close, gap = match.groups()
    if gap is None:
        before = text[match.start() - 2 : match.start()]
        return not close and before.isalpha() and before.islower()
    follow = text[end : end + _RIGHT_CONTEXT].lstrip(" \"'([")
    if not follow:
        return True
    small = follow[0].islower()
    if small and (close or end > match.end()):
        return False
    if mark == ".":
        left = text[max(start, match.start() - _LEFT_CONTEXT) : match.start()]
        return not (_is_abbreviated(left, follow, small) or text[start : match.start()].strip().isdigit())
    if "!" not in mark and "?" not in mark:
        return not small
    return not (small and text[start : start + 3].strip()[:1].isupper())


def _is_abbreviated(left: str, follow: str, small: bool) -> bool:
    """Whether the full stop between `left` and `follow` belongs to the word before it."""
    if _INITIAL.search(left):
        return not _SENTENCE_OPENER.match(follow)
    if follow[0].isdigit() and _BEFORE_NUMBER.search(left) and not left[-1:].isdigit():
        return True
    return bool(_NEVER_END.search(left)) or (small and bool(_BEFORE_CAPITAL.search(left)))
