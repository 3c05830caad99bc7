"""The key of a teacher's server: from the environment alone, and never in anything written."""

import base64
import ipaddress
import logging
import os
import re
import urllib.parse

from instructrec_jax.errors import UserError

logger = logging.getLogger(__name__)
_LEAST = 6  # characters; shorter ones may be part of any word
_HIDDEN = "[key]"


class ApiKey:
    """A key, which no representation shows."""

    def __init__(self, text: str) -> None:
        self._text = text
        forms = _forms(text) if len(text) >= _LEAST else set()
        longest_first = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if forms else None

    def __repr__(self) -> str:
        return _HIDDEN

    def for_header(self) -> str:
        """Returns the key itself, to be handed to the client and nobody else."""
        return self._text

    def hidden_in(self, text: str) -> str:
        """Returns a text in which "[key]" replaces the key, URL- and base64-encoded too.

        What a server says is never to be trusted: some repeat the key in their messages.
        """
        return self._pattern.sub(_HIDDEN, text) if self._pattern else text


def read_key(variable: str, base_url: str) -> ApiKey:
    """Reads the key from the environment; a server on this machine may do without.

    Args:
      variable: name of the environment variable.
      base_url: address of the server.

    Raises:
      UserError: if there is none, or it cannot be a key.
    """
    text = os.environ.get(variable, "").strip()
    local = is_local(base_url)
    if not text and not local:
        raise UserError(
            f"the environment variable {variable} is not set; {base_url} needs an API key: export "
            "it, or name the variable that holds it (--key_variable)"
        )
    if not text.isascii() or not text.isprintable() or " " in text:
        raise UserError(
            f"the environment variable {variable} holds no API key: it has spaces, line breaks or "
            "letters outside ASCII; set it again"
        )
    if text and not local and base_url.startswith("http:"):
        logger.warning("the API key goes to %s unencrypted (http)", base_url)
    return ApiKey(text or "none")


def is_local(base_url: str) -> bool:
    """Returns whether a server is on this machine."""
    host = urllib.parse.urlsplit(base_url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _forms(text: str) -> set[str]:
    """Returns a key as it may be written, in base64 wherever it begins in the three bytes."""
    forms = {text, urllib.parse.quote(text, safe=""), urllib.parse.quote_plus(text)}
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(bytes(before) + text.encode()).decode().rstrip("=")
            # The first and the last character may hold bits of what stands beside the key.
            forms.add(encoded[-(-before * 8 // 6) : len(encoded) - 1])
    return forms
