"""A report as one HTML page that opens offline and asks nothing of any host.

Texts of others, such as titles, stay texts: jinja2 escapes them, what the script reads travels as
JSON that no browser runs, and the policy of the page allows only the page's own script and style.
"""

import base64
import functools
import hashlib
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2

from instructrec_jax.report import charts

if TYPE_CHECKING:  # its tables are drawn here, and written there
    from instructrec_jax.report.tables import Document


def as_html(document: "Document") -> str:
    """Returns one page with all tables, their pictures, and the users of a document."""
    return _template().render(document=document)


@functools.cache
def _template() -> jinja2.Template:
    style, script = _own("page.css"), _own("page.js")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    environment.globals.update(
        policy=policy,
        style=style,
        script=script,
        width=charts.WIDTH,
        is_line_chart=lambda chart: isinstance(chart, charts.LineChart),
        is_command=_is_command,
    )
    return environment.from_string(_own("page.html.jinja"))


def _own(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _is_command(name: str, value: Any) -> bool:
    """Returns whether a fact is a command line, which can be copied."""
    return name.endswith("command") and isinstance(value, str)
