"""How well a model and the rules tell apart what free text asks for.

    python benchmarks/free_text.py --prepared_dir=runs/prepared --texts_dir=runs/texts \\
        [--model=runs/model]

Protocol: texts that a teacher wrote for this catalogue are labelled by what they were written as:
preferences (P2, all voices), intentions (I1, both voices), category paths (I2); up to `--number`
different ones of each, drawn by a seed. Texts that ask nothing (I0) are the check texts of
`serving/intents.json`. "Right" is the share of a class that gets its label, "unsure" the share that
gets none; balanced accuracy is the mean of the classes. The model's figures are without and with
the threshold that it is given when it is opened; rules that were written for the offline teacher's
wordings know these better than people's.
"""

import argparse
import random
from collections.abc import Sequence

import numpy as np

from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.serving.filters import CatalogueFields
from instructrec_jax.serving.intents import CHECKS, INTENTS, IntentModel, intent_by_rule, words_of
from instructrec_jax.serving.ranking import open_model
from instructrec_jax.teacher.texts import INTENTIONS, PREFERENCES

MOST_TOKENS = 64


def drawn(texts: Sequence[str], number: int) -> list[str]:
    """Returns some of the different texts."""
    found = sorted(set(texts))
    return random.Random(0).sample(found, min(number, len(found)))


def labelled(prepared_dir: str, texts_dir: str, number: int) -> list[tuple[str, str]]:
    """Returns texts, each after what it is."""
    import pyarrow.parquet as pq

    rows = {
        name: pq.read_table(f"{texts_dir}/{name}.parquet").to_pylist()
        for name in (PREFERENCES, INTENTIONS)
    }
    of_class = {
        "P2": [text for row in rows[PREFERENCES] for text in row["texts"]],
        "I0": [text for intent, text in CHECKS if intent == "I0"],
        "I1": [t for row in rows[INTENTIONS] for t in (*row["texts"], *row["second_texts"])],
        "I2": [item.category for item in read_prepared(prepared_dir).items if item.category],
    }
    return [(intent, text) for intent in INTENTS for text in drawn(of_class[intent], number)]


def show(name: str, truth: Sequence[str], found: Sequence[str]) -> None:
    """Prints the figures of one way."""
    shares = []
    print(name)
    for intent in sorted(set(truth), key=INTENTS.index):
        own = [guess for label, guess in zip(truth, found, strict=True) if label == intent]
        shares.append(own.count(intent) / len(own))
        unsure = own.count("") / len(own)
        print(f"  {intent}  n={len(own):4d}  right {shares[-1]:.3f}  unsure {unsure:.3f}")
    print(f"  balanced accuracy {np.mean(shares):.3f}, chance {1 / len(shares):.3f}")


def main() -> None:
    """Measures what the flags name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("prepared_dir", "texts_dir"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--model")
    parser.add_argument("--number", type=int, default=100)
    flags = parser.parse_args()
    pairs = labelled(flags.prepared_dir, flags.texts_dir, flags.number)
    truth, texts = [intent for intent, _ in pairs], [text for _, text in pairs]
    items = read_prepared(flags.prepared_dir).items
    fields = CatalogueFields(items)
    known = words_of([f"{item.title} {item.category} {item.brand}" for item in items])
    show("rules", truth, [intent_by_rule(text, fields, known).intent for text in texts])
    if flags.model:
        model = open_model(flags.model)
        reader = IntentModel(model.vocabulary, MOST_TOKENS)
        checks = [text for _, text in CHECKS]
        reader.calibrate(model.scorer(model.model, reader.requests(checks)))
        found = model.scorer(model.model, reader.requests(texts))
        best = reader.gains(found).argmax(axis=1)
        show("model, always", truth, [INTENTS[index] for index in best])
        if reader.threshold is not None:
            show("model, where sure", truth, [guess.intent for guess in reader.guesses(found)])
        print(reader.measured)


if __name__ == "__main__":
    main()
