"""The stage `annotate plan`: what `annotate run` would ask and cost. Nothing is sent."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from instructrec_jax.progress import Progress
from instructrec_jax.report.tables import Document, Section, Table
from instructrec_jax.settings import check_arguments
from instructrec_jax.stages.annotate.export import open_ledger, open_prepared
from instructrec_jax.teacher import estimate
from instructrec_jax.teacher.estimate import Volume
from instructrec_jax.teacher.prices import known_models, price_of
from instructrec_jax.teacher.settings import ClientSettings
from instructrec_jax.teacher.wanted import WantedSettings, WantedTexts

_KEY_DIGITS = 15  # of a question's sha256, by which it is known again
_A_TEXT = "x" * 160  # in place of one that is still to be written
_RETRIES = "An answer that cannot be used is asked for once more, which comes on top."


def plan(
    *,
    dataset: str,
    input_dir: Path | str,
    settings: WantedSettings,
    client: ClientSettings,
    ledger_path: Path | str | None = None,
) -> Document:
    """Returns the requests, tokens, prices and hours of `annotate run` with the same flags.

    Args:
      dataset: name of the dataset, such as ml_100k.
      input_dir: output folder of `prepare`.
      settings: what is asked.
      client: whom, how fast and for how much.
      ledger_path: a ledger whose answers need not be asked for again.

    Raises:
      UserError: if an input or a setting is unusable.
    """
    check_arguments(plan, locals())
    data = open_prepared(dataset, input_dir)
    wanted = WantedTexts(data, settings)
    if ledger_path is not None and Path(ledger_path).exists():
        with open_ledger(ledger_path, input_dir) as ledger:
            volumes = _volumes(wanted, ledger.answered)
    else:
        volumes = _volumes(wanted, lambda keys: set())
    return _document(data.dataset, wanted, volumes, settings, client)


def _volumes(wanted: WantedTexts, answered: Callable[[list[str]], set[str]]) -> dict[str, Volume]:
    """Returns what would be asked, by the kind of text; a question that comes twice counts once."""
    volumes: dict[str, Volume] = {}
    seen: set[int] = set()
    progress = Progress("plan", total=wanted.num_blocks, unit="blocks of users")
    for block in progress.track(wanted):
        known = answered([text.question.key for text in block])
        for text in block:
            if text.is_paraphrased:
                worded = text.paraphrase(_A_TEXT)
                volume = volumes.setdefault(worded.prompt.kind, Volume())
                volume.add(worded.question, expected_tokens=worded.prompt.expected_tokens)
            volume = volumes.setdefault(text.prompt.kind, Volume())
            key = text.question.key
            if (number := int(key[:_KEY_DIGITS], 16)) in seen:
                volume.repeated += 1
                continue
            seen.add(number)
            if key in known:
                volume.answered += 1
            else:
                volume.add(text.question, expected_tokens=text.prompt.expected_tokens)
    return volumes


def _document(
    dataset: str,
    wanted: WantedTexts,
    volumes: Mapping[str, Volume],
    settings: WantedSettings,
    client: ClientSettings,
) -> Document:
    """Returns the plan as people read it."""
    whole = estimate.total(volumes.values())
    return Document(
        title=f"Texts on {dataset} by {settings.model}",
        summary=f"{whole.requests:,} requests on {wanted.counts['users']:,} users; none was sent.",
        sections=[
            *cost_sections(volumes, settings.model, client, footnotes=[_RETRIES]),
            Section(title="Data", tables=[], lines=_data_lines(wanted)),
        ],
    )


def cost_sections(
    volumes: Mapping[str, Volume],
    model: str,
    client: ClientSettings,
    *,
    footnotes: Sequence[str] = (),
) -> list[Section]:
    """Returns the requests, the price with every known model, and the time.

    Args:
      volumes: what would be asked, by kind.
      model: that would be asked.
      client: how.
      footnotes: what else is to be known of the requests.
    """
    whole = estimate.total(volumes.values())
    return [
        Section(title="Requests", tables=[_request_table(volumes, whole, footnotes)]),
        Section(title="Price", tables=[_price_table(whole, model, client)]),
        Section(title="Time", tables=[], lines=_time_lines(whole, client)),
    ]


def _request_table(volumes: Mapping[str, Volume], whole: Volume, footnotes: Sequence[str]) -> Table:
    rows = [
        (
            name,
            f"{volume.requests:,}",
            f"{volume.answered:,}",
            f"{volume.repeated:,}",
            f"{volume.input_tokens:,.0f}",
            f"{volume.output_tokens:,}",
            f"{volume.most_output_tokens:,}",
        )
        for name, volume in [*volumes.items(), ("all", whole)]
    ]
    return Table(
        header=("kind", "requests", "answered", "equal", "tokens in", "tokens out", "at most"),
        rows=rows,
        footnotes=[
            f"Tokens are estimated: {estimate.CHARS_PER_TOKEN:g} characters are one, "
            f"{estimate.REQUEST_TOKENS} a request.",
            "answered: by the ledger already; equal: to another question, asked once for both.",
            "The hidden tokens of a model that reasons before it answers come on top.",
            *footnotes,
        ],
    )


def _price_table(whole: Volume, model: str, client: ClientSettings) -> Table:
    names = known_models(client.prices)
    rows, notes = [], ["at most: every answer takes its most tokens."]
    for name in [model, *(name for name in names if name != model)]:
        if (price := price_of(name, client.prices)) is None:
            notes.append(f"No table has a price of {name}; --prices names a file that does.")
            continue
        cells = [
            f"{whole.usd(price, is_batch=is_batch, at_most=at_most):,.2f}"
            for is_batch in (False, True)
            for at_most in (False, True)
        ]
        rows.append((name, *cells))
    header = ("model", "online USD", "at most", "Batch API USD", "at most")
    return Table(header=header, rows=rows, footnotes=notes)


def _time_lines(whole: Volume, client: ClientSettings) -> list[str]:
    limits = [
        f"{number:,} {what} a minute"
        for number, what in (
            (client.requests_per_minute, "requests"),
            (client.tokens_per_minute, "tokens"),
        )
        if number is not None
    ]
    hours = estimate.BATCH_HOURS * whole.batches(client)
    return [
        f"online: {_duration(whole.online_hours(client))}, with {client.max_in_flight} requests in "
        f"flight, {estimate.SECONDS_AN_ANSWER:g} seconds an answer, "
        + (f"at most {' and '.join(limits)}." if limits else "and no limit of the server's."),
        f"Batch API: batches of up to {client.batch_size:,} requests, each answered within "
        f"{estimate.BATCH_HOURS} hours; {whole.batches(client):,} in all, one after the other "
        f"within {hours:,} hours.",
    ]


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"


def _data_lines(wanted: WantedTexts) -> list[str]:
    found = {
        name.removeprefix("scrubbed/"): number
        for name, number in sorted(wanted.counts.items())
        if name.startswith("scrubbed/")
    }
    replaced = ", ".join(f"{name} {number:,}" for name, number in found.items()) or "none"
    without = wanted.counts["positions_without_review"]
    return [
        f"Personal details that were replaced in titles and reviews: {replaced}.",
        *(
            [f"Positions without a review, hence without an intention: {without:,}."]
            * bool(without)
        ),
    ]
