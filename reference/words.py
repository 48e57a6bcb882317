"""The vocabulary of the synthetic world: English word lists for tools and prose, and invented names.

Invented names are two-syllable words (`Tavo`). Capitalised, they belong to the world's lexicon and the tokenizer
holds each as one token; in lower case they are cut into syllables and stand for arbitrary strings to be copied.
"""

from __future__ import annotations

import random

CONSONANTS = "bdfghjklmnprstvz"
VOWELS = "aeiou"
SYLLABLES = [c + v for c in CONSONANTS for v in VOWELS]
LEXICON_SIZE = 2048


def lexicon() -> list[str]:
    """The 2,048 capitalised names of the world, always the same."""
    rng = random.Random(20_261_101)
    words = [a + b for a in SYLLABLES for b in SYLLABLES if a != b]
    return sorted(w.capitalize() for w in rng.sample(words, LEXICON_SIZE))


VERBS = (
    "get find list create delete update send book cancel schedule track search convert check add remove start stop "
    "open close order ship print share export import rename copy move archive approve reject assign lock unlock "
    "pause resume rate review pay refund measure compare translate"
).split()

# A request may name the action by another word than the tool does.
VERB_WORDS = {
    "get": ["get", "fetch", "show me", "give me"],
    "find": ["find", "look for", "locate"],
    "list": ["list", "show all entries for"],
    "create": ["create", "make", "set up"],
    "delete": ["delete", "erase", "get rid of"],
    "update": ["update", "change", "modify"],
    "send": ["send", "dispatch"],
    "book": ["book", "reserve"],
    "cancel": ["cancel", "call off"],
    "schedule": ["schedule", "plan"],
    "track": ["track", "follow"],
    "search": ["search", "search for"],
    "check": ["check", "verify"],
    "add": ["add", "append"],
    "remove": ["remove", "take out"],
    "start": ["start", "begin", "launch"],
    "stop": ["stop", "end", "halt"],
    "order": ["order", "buy"],
    "share": ["share", "pass on"],
    "copy": ["copy", "duplicate"],
    "approve": ["approve", "accept"],
    "reject": ["reject", "decline"],
    "pay": ["pay", "settle"],
    "review": ["review", "go over"],
}

NOUNS = (
    "weather flight hotel room ticket invoice order package payment account customer contract meeting event task "
    "project report document file folder image video song playlist recipe meal table taxi train bus route map "
    "address contact message email call reminder alarm calendar note survey form product price stock currency loan "
    "card transfer subscription license device sensor camera light lock door heater printer server database backup "
    "user group role permission course lesson exam student teacher book library patient doctor appointment "
    "prescription sample shipment warehouse vehicle parcel refund coupon review parking garage"
).split()

PARAM_HEADS = {
    "string": (
        "city country street name title author owner subject category brand color label topic language region team "
        "department reason comment destination origin airport station location keyword tag code company supplier"
    ).split(),
    "integer": (
        "count limit days nights guests seats pages quantity age year floor hours minutes level size copies adults "
        "children stars steps rows weeks"
    ).split(),
    "number": "price amount radius weight height width distance budget temperature rate speed length volume".split(),
    "boolean": (
        "urgent refundable private public recurring insured breakfast pets notify archived verified encrypted express "
        "giftwrap smoking wifi"
    ).split(),
    "enum": "priority format unit status size mode class method currency gender season scope".split(),
    "array": "tags items names cities colors products members topics codes labels authors stations".split(),
    "date": "date deadline arrival departure birthday checkin checkout expiry".split(),
}
MODIFIERS = "max min new old first last home work main backup next billing delivery target source default total".split()

ENUM_VALUES = {
    "priority": "low normal high critical".split(),
    "format": "pdf csv json html text".split(),
    "unit": "celsius kelvin meter mile gram pound".split(),
    "status": "active paused closed pending".split(),
    "size": "small medium large huge".split(),
    "mode": "fast slow silent manual automatic".split(),
    "class": "economy business premium".split(),
    "method": "cash card wire voucher".split(),
    "currency": "euro dollar yen franc".split(),
    "gender": "male female other".split(),
    "season": "spring summer autumn winter".split(),
    "scope": "local global shared none".split(),
}

ADJECTIVES = (
    "quiet old bright narrow busy green cold broad gentle early late simple heavy distant open small warm steady "
    "grey silver famous hidden plain modern"
).split()
THINGS = (
    "harbour market bridge valley river tower garden road station mill forest lake school bakery workshop square "
    "island hill museum lighthouse field canal"
).split()
PROSE_VERBS = "watches crosses remembers paints visits guards repairs describes leaves follows admires measures".split()
TIMES = "in the morning|at noon|in the evening|after the rain|before winter|every spring|on market days|at night".split(
    "|"
)
PEOPLE = "baker|teacher|sailor|farmer|engineer|doctor|painter|merchant|guide|miller|clerk|captain".split("|")


def random_word(rng: random.Random) -> str:
    """A lower-case invented word of two to four syllables."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3, 3, 4))))
