"""Phrases cut out of sentences: whole to the ear, short, and free of complaint."""

import re

MAX_CHARS = 160

# Where a new thought starts: what follows is no part of the wish.
_NEW_THOUGHT = re.compile(
    r"(?:,|\s-+|\s\u2013|:)?\s(?:and|but|so|then|however|though|although|as|because|since|while"
    r"|yet)(?: then| so| now| also)?\s(?:it|its|it's|they|he|she|I|I'm|I've|we|this|that's"
    r"|that is|these|those|everyone|everybody|the \w+ (?:is|was|are|were|did|does|loved?)|you"
    r"|your|my \w+ (?:loved?|loves|is|was)|there|there's|was|were|is|am|had|couldn't|can't|what"
    r"|if|not|got|thought|received|arrived|would|works?|sings?|plays|writes|makes|gets?|takes?"
    r"|gives?|goes|can|really|just|still|came|will|has|buy|get|pick|check|don't|only)\b.*"
    r"|\s(?:but|however|although|yet)\s.*"
    r"|(?:,|\s-+|\s\u2013|:)\s?(?:it|it's|they|he|she|I|I'm|I've|I'd|we|this|that's|these|those"
    r"|you|you'll|you'd|your|there|there's|then|check|get|buy|pick|don't|do|however|worth|loved?"
    r"|loves|very|thanks?|thank|great|perfect|pick|grab|look|give|go|try|read|no|yes|not|which is"
    r"|which was|highly|must|best|the \w+ (?:is|was|are|were))\b.*"
    r"|\s(?:I|we|you) (?:highly |would |strongly |definitely |can |will |must |should |also "
    r"|may )*(?:recommend|suggest|must|should|ll|need to (?:get|buy|have|own|hear))\b.*"
    r"|\s(?:this|it)(?: \w+){0,2} (?:is|was|will|would|has|does|did|makes?|works?|worked|delivers"
    r"|should)\b.*"
    r"|\s(?:I am|I'm|I was|I know|I think|I've|I bought|I got|I had|I will|I would|you're|you'll"
    r"|you will|you are gonna|you would|you can't|you need|you must|you have to|they are"
    r"|they will|he will|she will)\s.*"
    r"|\s(?:he|she|they) (?:loves?|loved|likes?|was|were|is|are|really|said|can|just|absolutely"
    r"|thought|enjoys?|used|use|uses|has|have)\b.*"
    r"|,\s(?:the|everyone|all|who|which|and|so|as) \w+ (?:\w+ed|said|had|got|loves?)\b.*"
    r"|\s(?:recipient|receiver)s? (?:seem|was|were|is|loved?)\b.*"
    r"|\s(?:you are|look (?:at|no)|buy this|or (?:even )?if|do yourself|take some time)\s.*"
    r"|,\s(?:if|when|and) .*|\s(?:at all|due to|named|thanks|thank you|do yourself|there's"
    r"|yesterday|last (?:week|month|year)|today)\b.*"
    r"|\s(?:then|this is|it is|it's|it was|that's)\s.*"
    r"|\s[-\u2013|]+\s.*",
    re.IGNORECASE,
)
_ASIDE = re.compile(r"\s*[(\[][^()\[\]]*[)\]]")
_OPEN = re.compile(r"\s*[(\[].*|[)\]].*")
_DANGLING = re.compile(
    r"(?:[\s,:]+(?:a|an|the|and|or|but|of|to|for|with|in|on|at|by|from|as|that|which|who|is|are"
    r"|was|were|this|so|if|my|our|your|his|her|their|because|than|too|very|like|when|where|about"
    r"|into|such|also|be|then|can|will|would|just|not|has|have|had|its|these|those|some|any|each"
    r"|i|we|they|he|she|you|over|after|before|while|how|what|up to|even|do|more|most|really|well"
    r"|s|still|already|again|here|now|either|anyway|today|though|ever|a few times|and also))+$",
    re.IGNORECASE,
)
_COMPLAINT = re.compile(
    r"\b(?:not|never|no|nothing|nobody|none|neither|nor|without|hardly|barely|won't|cannot|\w+n't"
    r"|cant|dont|didnt|doesnt|isnt|wont|wasnt|bad|worse|worst|terrible|horrible|awful|poor|poorly"
    r"|boring|dull|weak|lame|annoying|disappoint\w*|problems?|issues?|complain\w*|refund\w*"
    r"|return(?:ed|ing)?|broken?|empty|expired|fraud|scam|useless|waste|wasted|avoid|hate[ds]?"
    r"|sucks?|garbage|trash|crap|laughable|moronic|shoddy|mediocre|overrated|forgettable|fail(?:s"
    r"|ed|ure)?|lack(?:s|ed|ing)?|unfortunately|sadly|pity|shame|wrong|error|wish|however|except"
    r"|skip|stupid|ridiculous|filler|dated|angry|frustrat\w*|less than|too \w+|f[u*@#$%]+\w*k\w*"
    r"|shit\w*|bitch\w*|nigg\w*|ass|damn\w*)\b|[*@#$%]+[a-z]",
    re.IGNORECASE,
)
# Phrases that hold one of these words and complain of nothing.
_NO_COMPLAINT = re.compile(
    r"\b(?:(?:can't|cannot|can not|can never|never|couldn't|cant|can t|won't|don't|can) (?:go "
    r"|be )?wrong|nothing wrong|no (?:fuss|hassle|muss|doubt|problems?|issues?|worries|complaints"
    r"|fees?|mess|wrapping)|not only|never (?:gets? old|disappoint\w*|fails?|tire)|(?:does not"
    r"|doesn't|don't|won't|will not|not) (?:be )?(?:disappoint\w*|let (?:you|me) down|expire)"
    r"|not too|can't (?:wait|get enough|live without|stop)|not expensive|(?:don't|do not|didn't"
    r"|not|never|dont) (?:know|sure)(?: \w+)? (?:what|which|how|where|size|to)|hard to (?:please"
    r"|buy for|shop for)|no (?:one|matter)|no shipping|too well|why not|without (?:having"
    r"|the hassle|leaving|going|a doubt)|who (?:don't|doesn't|can't|cannot)|too much trouble"
    r"|don't have to|not have to|didn't have to|didn't want to (?:drive|go|leave)|needs? no)\b",
    re.IGNORECASE,
)


def tidied(phrase: str) -> str:
    """Returns a phrase up to where its thought ends, without asides, open quotes or loose ends.

    Example:
      "my son (he is 9), and he loved it" -> "my son".
    """
    return trimmed(_NEW_THOUGHT.sub("", without_asides(phrase), count=1))


def without_asides(text: str) -> str:
    """Returns a text without what stands in brackets, and without a quotation left open.

    Example: 'a harp (old) of "Wood' -> "a harp of".
    """
    text = _OPEN.sub("", _ASIDE.sub("", text))
    if text.count('"') % 2:
        text = text[: text.rindex('"')]
    return trimmed(text)


def trimmed(text: str) -> str:
    """Returns a text without marks at its end and without words there that lead nowhere.

    Example: "a card for the" -> "a card".
    """
    while (shorter := _DANGLING.sub("", text.rstrip(" .,:!?-\u2013\u2014/&+*'(")) or "") != text:
        text = shorter
    return text


def cut(text: str, max_chars: int = MAX_CHARS) -> str:
    """Returns at most `max_chars` characters of a text.

    It is cut where a part of the sentence ends, if that keeps half of the length, else between
    words.

    Example:
      ("a small harp, an old drum and more", 20) -> "a small harp".
    """
    if len(text) <= max_chars:
        return text
    head = text[: max_chars + 1].rpartition(" ")[0] or text[:max_chars]
    for mark in (", ", " and ", " that ", " which "):
        place = head.rfind(mark)
        if place >= max_chars // 2:
            return trimmed(head[:place])
    return trimmed(head)


def complains(text: str) -> bool:
    """Tells whether a text denies or blames: what somebody did not get is no wish.

    Example: "the sound is weak" -> True; "you can't go wrong with it" -> False.
    """
    return _COMPLAINT.search(_NO_COMPLAINT.sub("", text)) is not None
