r"""What tells a wish in a sentence of a review, and how to say it when asking: the rules as data.

A rule finds a phrase in a sentence ("bought this *for my daughter's birthday*") and says it in a
frame ("I want something for my daughter's birthday"). What was bought is left open ("something"),
so that the wish and not the item is spoken of. The weights order the rules by how surely they
show a need:

  9 to 7  an own wish or purpose: looking for, wanted, needed, bought as / for / to, a gift for
  7 to 5  a recipient, or a kind of listener, reader or player: my son loved it, if you like, fans
  of 5 to 4  a use, a bare gift, a liking: perfect for, great gift, I love the ...
  3 to 2  a description: this is a ..., has great ..., the sound is ...
"""

import dataclasses
import re

from instructrec_jax.teacher.words import words

# A description tells something with three content words; two are "great album" and the like.
MIN_CONTENT = 3

# Words that praise. A plain sentence without one describes nothing that somebody could wish for.
GOOD_WORDS = frozenset(
    words("""great good nice excellent beautiful strong wonderful amazing awesome fantastic fine
    cool solid catchy smooth fresh soulful lovely superb brilliant fun funky perfect classic rich
    sweet powerful gorgeous incredible easy quick ideal thoughtful cute simple convenient soft warm
    clean clever deep mellow upbeat raw melodic tight pure unique cheap handy safe practical fast
    happy stunning magical haunting lush energetic memorable timeless essential
    moving emotional inspired inspiring relaxing danceable groovy intense heartfelt terrific""")
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What to find in a sentence, and how to say it.

    Attributes:
      weight: need-likeness of what it finds.
      cues: a sentence in small letters holds one of them, or the pattern is not tried.
      pattern: finds the phrase `x`, and for a liking its `verb`.
      frame: the user's words around the phrase; the view from outside is made from it.
      min_content: content words that the phrase needs, or it says nothing.
      is_liking: what is liked may be a list of names: artists, series, makers.
      is_common: the phrase starts with a common word; a name there is a song or a person.
      is_thing: the phrase is a thing that may lack its article.
      is_present: a "was" in the phrase is said as "is".
    """

    weight: float
    cues: tuple[str, ...]
    pattern: re.Pattern[str]
    frame: str
    min_content: int = 1
    is_liking: bool = False
    is_common: bool = False
    is_thing: bool = False
    is_present: bool = False


def _pattern(*parts: str) -> re.Pattern[str]:
    """Compiles a pattern that does not mind capitals."""
    return re.compile("".join(parts), re.IGNORECASE)


_GOOD = f"(?:{'|'.join(sorted(GOOD_WORDS))})"
# What was bought: "this", "a few of them", "one of these gift cards"; may be left out.
_OBJECT = (
    r"(?:(?:this|these|it|one|them|that|those|a few|some|several|two|three|four"
    r"|\d+)\b(?: (?!for\b|as\b|to\b|because\b)[\w'$-]+){0,3}? |)"
)
_RELATION = (
    r"(?:family|kids|children|husband|wife|sons?|daughters?|(?:great[ -]?)?grand ?(?:kids"
    r"|children|sons?|daughters?|parents|ma|pa|mother|father|child)|nephews?|nieces?|mom|mother"
    r"|dad|father|friends?|teens?|sisters?|brothers?|boyfriend|girlfriend|co-?workers?|teachers?"
    r"|boss|hubby|parents|cousins?|uncle|aunt|boys|girls|roommate|neighbors?|students|employees"
    r"|toddler|baby)"
)
_RECIPIENT = (
    rf"(?:(?:his|her) (?:birthday|graduation|wedding|collection|{_RELATION})"
    r"|(?:my|our) (?!(?:own|ears?|address|email|favou?rite|opinion|surprise|taste|money|account"
    r"|phone|self)\b)|(?:a|an|the) (?:friend|relative|family|co-?worker|teacher|child|kid|teen"
    r"|man|woman|boy|girl|person|people|employee|student|boss|nurse|mail|holidays?|kids|grand\w+"
    r"|car|house|kitchen|office|gym|winter|summer|road|beach)|friends|family|co-?workers|kids"
    r"|teens|people|someone|grand\w+|children|teachers?|christmas|birthdays?|gifts?|presents?"
    r"|(?:mother|father)'?s? day|valentine|easter|graduation|holidays?|stocking|wedding"
    r"|anniversary|last minute)"
)
_BOUGHT = (
    r"(?:bought|purchased|purchase|got|get|getting|ordered|order|picked|chose|buy|buying|gave"
    r"|give|given|giving|sent|send|sending|used|use|using|wanted|needed)"
)
_VERY = (
    r"(?:(?:really|also|just|always|absolutely|still|truly|only|especially|particularly"
    r"|definitely|have|had|was|am|been|'m|'ve|'d|do|did) )*"
)
_BEING = r"(?:is|are|was|were|makes?|made|has been|have been|'s|remains|would be|would make)"
_MODIFIER = r"(?!(?:a|an|as|for|of|to|with|and|or|in|on|is|was|the|this|but|by|from|card)\b)[\w'-]+"
_POINTER = r"(?:it|this|these|them|that|those|him|her|us|me)\b"
# What a phrase after "is a" or "with" is not about: a moment, one song, a figure of speech.
_NO_DESCRIPTION = (
    r"(?!(?:[\w'-]+ ){0,3}?(?:time|day|year|song|track|single|tune|reason|man|woman|guy|girl|boy"
    r"|question|review|hit|era|period|moment|fan|fact|cover|version|ballad|wonder|end|ending"
    r"|opener|closer|result|part|case|feeling|chance|job|step|move|reminder|example|surprise"
    r"|relief|pick|favou?rites?|way|point|path|number|idea|tale|thing|change|anticipation|deal"
    r"|hearts?|taste|success|effect|pleasure|respect|care|memor(?:y|ies)|wallet|luck)s?\b)"
)
_NO_ALBUM = r"(?!(?:[\w'-]+ ){0,3}?(?:release|album|cd|record|effort|product|item|book|game)s?\b)"
_ASPECT = (
    r"(?:sound|music|voices?|vocals?|lyrics|beats?|price|production|songs|tracks|melodies|melody"
    r"|guitars?|drums|drumming|bass|rhythms?|story|quality|graphics|gameplay|controls|characters"
    r"|smell|scent|fit|packaging|delivery|design|acting|plot|writing|arrangements?|harmonies"
    r"|instrumentation|singing|playing|musicianship|box|size|colou?rs?|taste|food)"
)
_GIFT = r"(?:gifts?|presents?|(?:stocking )?stuffers?)"
_NO_CARD = r"(?! (?:cards?|recipient|giving|box|bag|certif\w*|tins?)\b)"

RULES = (
    Rule(
        9,
        ("looking for", "searching for", "search of", "hunting for", "shopping for"),
        _pattern(
            r"\b(?:I|we|was|were|been|am|'m)\b[\w' ]*? (?:looking|searching|in search|hunting"
            rf"|shopping) (?:for|of) (?!{_POINTER}|(?:the past|years|a reason)\b)(?P<x>\w.+)"
        ),
        "I am looking for {x}",
    ),
    Rule(
        8.5,
        ("need", "want"),
        _pattern(
            rf"\b(?:I|we) {_VERY}(?:needed|need|wanted|want) (?P<x>(?:an? |some |more (?!of )"
            rf"|to (?:have|own"
            r"|hear|play|find|try|get|give|send|buy|use|learn|surprise|treat|replace|complete|add"
            r"|go"
            rf"|make|keep|share) (?!{_POINTER})|something |the |new |my )(?!{_POINTER}).+)"
        ),
        "I want {x}",
        2,
    ),
    Rule(
        8,
        (" as ",),
        _pattern(
            rf"\b{_BOUGHT} {_OBJECT}(?:out )?as (?P<x>(?:an? |gifts?|presents?|stocking|christmas"
            r"|birthday|thank|bonus|prizes?|rewards?|my |small |last|secret)(?!result|whole|kid\b"
            r"|child\b|teen).*)"
        ),
        "I am looking for {x}",
    ),
    Rule(
        8,
        (" for ", " to "),
        _pattern(rf"\b{_BOUGHT} {_OBJECT}(?:for|to) (?P<x>{_RECIPIENT}.*)"),
        "I want something for {x}",
    ),
    Rule(
        7.5,
        (" to ",),
        _pattern(
            rf"\b(?:bought|purchased|got|ordered|picked up|buy|order) {_OBJECT}(?P<x>to (?:give"
            rf"|send"
            r"|use|take|play|replace|complete|add|have|keep|surprise|treat|help|make|go with|put"
            r"|share|listen|dance|relax|celebrate|thank)\b.+)"
        ),
        "I want something {x}",
        2,
    ),
    Rule(
        7,
        ("gift", "present", "stuffer", "idea", "choice", "option"),
        _pattern(
            rf"\b(?P<x>(?:an? )?(?:(?:very"
            rf"|really) )?{_GOOD} (?:and {_GOOD} )?(?:{_MODIFIER} ){{0,3}}?(?:{_GIFT}|ideas?"
            rf"|choice|option) (?:ideas? )?(?:for|when|if|that|who|to (?:give|get"
            r"|send|receive|have|put|buy)\b) .+)"
        ),
        "I am looking for {x}",
        2,
        is_thing=True,
    ),
    Rule(
        7,
        ("way to ",),
        _pattern(
            rf"\b(?P<x>(?:an? )?(?:(?:very|really) )?{_GOOD} (?:and {_GOOD} )?way to (?:give|gift"
            rf"|say"
            r"|send|package|wrap|treat|surprise|shop|pay|save|display|get|introduce|relax|keep"
            r"|show|celebrate|spend|present)\b .+)"
        ),
        "I am looking for {x}",
        2,
        is_thing=True,
    ),
    Rule(
        7,
        ("gift", "present", "stuffer"),
        _pattern(
            r"(?:^|\b(?:was|is|were|are|made|my|usual|them|it)\b,? |, )(?P<x>(?:an? )?"
            rf"(?:{_MODIFIER} ){{0,2}}?{_GIFT} (?:for|to) (?!me\b|use\b|spend\b|buy\b|get\b)\w.+)"
        ),
        "I am looking for {x}",
        is_thing=True,
    ),
    Rule(
        7,
        ("gift", "present", "stuffer"),
        _pattern(
            r"\b(?:this|it|these|they|cards?|mine) (?:was|were|is|are) (?:given )?(?:for |as )?"
            rf"(?P<x>(?:an? )?(?:{_MODIFIER} ){{0,2}}?{_GIFT}){_NO_CARD}\b"
        ),
        "I am looking for {x}",
        is_thing=True,
    ),
    Rule(
        6.6,
        ("love", "like", "enjoy"),
        _pattern(
            r"(?:^|\b(?:my|our|the|and|,) )(?P<x>(?:(?!(?:my|our|the|and|is|by|for|a)\b)[\w'-]+ "
            rf"(?:year )?(?:old )?)?{_RELATION}(?: in law)?) (?:really |just |absolutely |all "
            rf"|always"
            r" |will |would |also |both )*(?:loved?|loves|likes?|enjoyed|enjoys?) (?:it|this"
            r"|these|them|her|his|the (?:card|gift|present|book|cd|tin))\b"
        ),
        "I want something that my {x} would love",
    ),
    Rule(
        6.5,
        ("love", "like", "enjoy"),
        _pattern(
            r"(?:^(?:she|he|they)|\b(?:anyone|someone|everyone|people|those) who|\b(?:everyone"
            r"|people"
            rf"|{_RELATION})(?: who)?) (?:really |just |absolutely |all |always |will |would "
            rf"|also )*"
            r"(?:loves?|likes?|enjoys?) (?P<x>(?:to (?!hear|see|say|talk|call|think|make|take)"
            r"|going|eating|shopping|playing|reading|watching|cooking|listening|dancing"
            r"|their )\w*.+)"
        ),
        "I want something for someone who loves {x}",
    ),
    Rule(
        6.3,
        ("if you", "if u ", "if anyone", "if someone"),
        _pattern(
            r"\bif (?:you|u|your|anyone|someone)(?: are|'re|r| is)? (?:really |truly |just "
            r"|also )*(?:looking for|in the mood for|searching for|after|in need of) "
            rf"(?!{_POINTER})(?P<x>.+)"
        ),
        "I am looking for {x}",
    ),
    Rule(
        6.2,
        ("if you", "if u ", "if anyone", "for anyone who", "for someone who", "for people who"),
        _pattern(
            r"\b(?:if (?:you|u|anyone|someone)|for (?:those|anyone|someone|people"
            r"|everyone) (?:who|that)) (?:really |truly |just |also |have |do |even "
            r"|ever )*(?:like|love|enjoy|prefer"
            rf"|appreciate|dig)[sd]? (?!(?:{_POINTER}|to hear\b|to say\b|what\b))(?P<x>\w.+)"
        ),
        "I like {x}",
        is_liking=True,
    ),
    Rule(
        6,
        ("fan of", "fans of", "lover of", "lovers of"),
        _pattern(
            rf"\b(?:fans?|lovers?) of (?!{_POINTER}|(?:his|their|its|the|theirs|hers|mine|course"
            r"|such)\b)(?P<x>\w.+?)(?= (?:should|will|would|may|might|can|must|who|out there"
            r"|everywhere|alike)\b|$)"
        ),
        "I am a fan of {x}",
        is_liking=True,
    ),
    Rule(
        5.5,
        (" fan", " lover", " collector", " buff", " enthusiast"),
        _pattern(
            r"\b(?:for|all|any|every|true|most|a|an|must for|as an?|are an?) (?P<x>(?!(?:all|any"
            r"|every|the|true|big|huge|great|real|most|long|longtime|a|an|his|her|their|old|major"
            r"|new|other|previous|first|this|that|recall|casual|die-hard|hardcore"
            r"|debut)\b)(?:(?!(?:for|of|to|in|on|with)\b)[\w&'/-]+ ){1,3}?(?:fan|lover|collector"
            r"|buff|enthusiast))s?\b(?! of)"
        ),
        "I am a {x}",
        2,
    ),
    Rule(
        5,
        (" for ", "great for"),
        _pattern(
            r"\b(?P<x>(?:great|perfect|ideal|good|excellent|handy|wonderful|useful|convenient"
            r"|nice|fun|terrific) for (?!(?:the (?:price|money|most|\d+)|being|an opener|what|it"
            r"|me|us|its|an? (?:while|few|change|album)|\$?\d|his|her|their)\b)\w.+)"
        ),
        "I want something that is {x}",
        2,
    ),
    Rule(
        4.8,
        ("gift", "present", "stuffer"),
        _pattern(
            rf"(?:^|\b(?:a|an|the|as|these|such|very|really|so|always|this|are"
            rf"|makes?) )(?P<x>{_GOOD} "
            r"(?:(?:and|little|last|minute|christmas|birthday|holiday|thank|you|\w+y) ){0,2}"
            rf"(?:gift ideas?|{_GIFT}{_NO_CARD}))\b"
        ),
        "I am looking for {x}",
        is_thing=True,
    ),
    Rule(
        4.5,
        ("i ",),
        _pattern(
            rf"\bI {_VERY}(?P<verb>love|like|enjoy|adore|prefer|appreciate)d? (?!(?:{_POINTER}"
            rf"|(?:to"
            r"|every|each|all|most|and|or|but|is|was|my|what|when|about|very|being"
            r"|the fact)\b))(?P<x>\w.+)"
        ),
        "I {verb} {x}",
        2,
        is_common=True,
    ),
    Rule(
        3,
        ("is a", "was a", "one of", "are a", "makes a", "'s a", "some of", "made a", "remains a"),
        _pattern(
            rf"\b(?:this|it|that|these|album|cd|card|set|record|disc|music)(?:'s"
            rf"| {_BEING})(?: [\w']+ly"
            r"| also| still| just| such| without a doubt| by far| quite| always)* (?P<x>(?:an? "
            r"|some )"
            rf"{_NO_DESCRIPTION}(?!(?:must|shame|lot|bit|little|joke|pity|few|while|matter|mistake"
            r"|waste|ok|okay|five|four|three|disappoint\w*|gift card|classic|5|4|of my)\b)\w.+)"
        ),
        "I am looking for {x}",
        MIN_CONTENT,
    ),
    Rule(
        2.5,
        (" with ", " has ", " have ", " feature", " contain", " include", " offers ", " full of "),
        _pattern(
            r"\b(?:with|has|have|had|features?|contains?|includes?|offers|full of) (?P<x>(?:an? "
            r"|some "
            rf"|many |lots of |plenty of |such |so many )?{_NO_DESCRIPTION}{_NO_ALBUM}"
            r"(?:very |really "
            rf"|truly )?{_GOOD},? (?:and )?\w.+)"
        ),
        "I would like something with {x}",
        MIN_CONTENT,
    ),
    Rule(
        2,
        (" is ", " are ", " was ", " were "),
        _pattern(
            r"\b(?P<x>(?:the|his|her|their) (?:(?!bonus|title|other|last|first)[\w-]+ )?"
            rf"{_ASPECT} (?:is|are|was|were) (?!(?:the|not|a|an|that|what|to|on|in|by|as|off|even"
            r"|released|alternate|included|listed|handled|concerned|used|done|constructed|ruined"
            r"|dealt|written by|produced by)\b|\d)\w.+)"
        ),
        "I would like something where {x}",
        MIN_CONTENT,
        is_present=True,
    ),
)
