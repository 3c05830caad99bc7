"""Words of titles and texts: how they are cut and compared, and which of them tell little."""

import re

# A word may hold apostrophes, and dots between its letters ("o'clock", "T.G.I."); all else parts.
_WORD = re.compile(r"[^\W_]+(?:['\u2019.][^\W_]+)*")
_ENDING = re.compile(r"['\u2019]s\b|\.com\b")
_MARKS = str.maketrans("", "", ".'\u2019")


def words(text: str) -> list[str]:
    """Returns the words of a text, spelt so that the spellings of one word agree.

    Small letters; a possessive "'s", a plural "s" (of words longer than three letters), ".com",
    apostrophes and dots inside initials are dropped.

    Example:
      "T.G.I. Friday's Gift-Cards" -> ["tgi", "friday", "gift", "card"].
    """
    return [
        singular(word.translate(_MARKS)) for word in _WORD.findall(_ENDING.sub("", text.lower()))
    ]


def singular(word: str) -> str:
    """Returns a word without the "s" of a plural; words of up to three letters stay."""
    if len(word) > 3 and word[-1] == "s" and word[-2] not in "sui":
        return word[:-1]
    return word


def content_words(text: str) -> list[str]:
    """Returns the words of a text that tell what it is about: neither stop words nor letters.

    Example:
      "A card for the boss" -> ["card", "boss"].
    """
    return [word for word in words(text) if is_content(word)]


def is_content(word: str) -> bool:
    """Tells whether a word, spelt as `words` does, is neither a stop word nor one letter."""
    return len(word) > 1 and word not in STOP_WORDS


STOP_WORDS = frozenset(
    words(
        """a about above after again all almost already also although always am an and another any
        anybody anyone anything are aren't around as at away back be because been before being
        between both but by can can't cannot could couldn't did didn't do does doesn't doing
        don't done down each either else enough etc even ever every everybody everyone
        everything few for from get getting give go goes going gone got had has hasn't have
        haven't having he her here hers herself him himself his how however i i'd i'll i'm i've
        if in into is isn't it its itself just let like made make making many may maybe me might
        mine more most much must my myself never no nobody none nor not nothing now of off often
        oh ok okay on once one only onto or other our ours out over own per perhaps put quite
        rather really said same say see seen shall she should since so some somebody someone
        something still such take than that the their them themselves then there these they
        they're they've thing this those though through to too took under until up upon us very
        was wasn't way we we're we've well went were weren't what whatever when where whether
        which while who whole whom whose why will with within without won't would wouldn't yes
        yet you you'd you'll you're you've your yours yourself lot bit kind sort type stuff"""
    )
)

# Words of the trade say of what kind an item is, never which item it is. A text may use them
# freely, so they are counted out before a text is compared with a title.
TRADE_WORDS = frozenset(
    words(
        """accessory accessories album amazon asin audio author bag band best birthday book bonus
        box boxed brand bundle cable card case cd christmas class classic collection collector
        color com complete configuration controller count day deluxe delivery design digital
        disc disk download dvd edition egift email mail ep essential explicit film first free
        full game gaming gift greatest greeting happy hit holiday import item kit last limited
        live lp mini movie multi multipack music new official old online original pack package
        part piece plus pound premium print product recording record release remaster remastered
        season second series set single size small song soundtrack special standard store system
        tape tin track ultimate value version video vinyl volume vol year"""
    )
)
# What an item runs on: it says as little of which item it is, though much of a taste.
PLATFORM_WORDS = frozenset(
    words(
        """android advance blu ray bluray boy console gamecube gameboy gba linux mac microsoft n64
        nintendo pc playstation ps ps1 ps2 ps3 ps4 ps5 psp psone sega sony super switch vita wii
        windows xbox ds 3ds 2ds dsi"""
    )
)
GENERIC_WORDS = TRADE_WORDS | PLATFORM_WORDS
# Words that many titles share by chance: alone they name no taste.
EVERYDAY_WORDS = frozenset(
    words(
        """adventure american angel art baby back bad big black blood blue body boy bring broken
        call change charge city cold come cool crazy dance dark dead death deep dog door dream
        easy end evil eye face fall fire five force four future ghost girl gold golden good
        great green hand hard head heart hell high home hot house human inside island king kiss
        know lady land life light lonely long lost love machine magic man master men mind
        mission money moon mother mr mystery name need night one open part people perfect planet
        play power present pretty pro rain real red return ride right river road rock run saint
        sea secret shadow shot show silver soul space star start state step stone storm story
        strange street summer sun sweet talk tell thing think three time town true turn two van
        various voice wall war water white wild wind woman wonder word world young zone adapter
        charger controller headphone headset keyboard lite mouse protector skin stereo usb wired
        wireless"""
    )
)
