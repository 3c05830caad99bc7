"""An invented world whose best possible scorer is known, and that scorer.

`data.synthetic` draws a user's items from a mixture that depends on the favourite kind and brand
alone. Whoever knows how the world draws, but not a user's favourites, ranks best by the probability
of a candidate given the history: Bayes' rule over all favourites.
"""

import numpy as np

from instructrec_jax.data import synthetic
from instructrec_jax.data.settings import KINDS, SyntheticSettings

NUM_BRANDS = synthetic._NUM_BRANDS
WORLD = SyntheticSettings(
    num_users=2000, num_items=192, num_interactions=18_000, seed=3, zipf_exponent=0.7
)


def item_probabilities(settings):
    """Returns [favourites, items] P(item | favourite kind and brand), repeats not excluded."""
    popularity = synthetic._Popularity(settings)
    found = np.zeros((len(KINDS), NUM_BRANDS, settings.catalogue_size))
    share = settings.favourite_share
    for kind in range(len(KINDS)):
        size = int(popularity._sizes[kind])
        by_rank = np.diff(popularity._bounds[:size], prepend=0.0) / popularity._bounds[size - 1]
        plain = np.zeros(size)
        plain[popularity._by_rank[kind, :size]] = by_rank
        items = np.arange(size) * len(KINDS) + kind
        found[:, :, items] += (1 - share) / len(KINDS) * plain
        found[kind][:, items] += share / 2 * plain
        for brand in range(NUM_BRANDS):
            loyal = np.zeros(size)
            for number, probability in enumerate(plain):
                of_brand = number // NUM_BRANDS * NUM_BRANDS + brand
                loyal[of_brand if of_brand < size else number] += probability
            found[kind, brand, items] += share / 2 * loyal
    assert np.allclose(found.sum(axis=-1), 1.0)
    return found.reshape(-1, settings.catalogue_size)


def raw_numbers(data):
    """Returns [items] the number that an item has in the invented world."""
    return np.array([int(item.raw_id.lstrip("i")) for item in data.items])


def best_scores(data, examples, candidates, settings=WORLD):
    """Returns [n, c] log P(candidate | history); histories must be whole, and users not cut."""
    probability = item_probabilities(settings)
    number = raw_numbers(data)
    histories = {history.user_id: history.item_ids for history in data.histories}
    scores = np.empty(candidates.shape)
    for row, example in enumerate(examples):
        seen: list[int] = []
        posterior = np.zeros(len(probability))
        for item in number[list(histories[example.user_id][: example.position])].tolist():
            posterior += np.log(next_probabilities(probability, seen)[:, item])
            seen.append(item)
        weights = np.exp(posterior - np.logaddexp.reduce(posterior))
        scores[row] = np.log(weights @ next_probabilities(probability, seen))[
            number[candidates[row]]
        ]
    return scores


def next_probabilities(probability, seen):
    """Returns [favourites, items] P(next item | favourites, items before).

    An item that the user has is replaced by the next one of its kind, and so on.
    """
    found, num_items = probability.copy(), probability.shape[1]
    for item in seen:
        free = item
        while free in seen:
            free += len(KINDS)
            free = free if free < num_items else (free + 1) % len(KINDS)
        found[:, free] += probability[:, item]
    found[:, seen] = 0.0
    return found


def popular_scores(data, examples, candidates, settings=WORLD):
    """Returns [n, c] log P(candidate) of a user of whom nothing is known."""
    return np.log(item_probabilities(settings).mean(axis=0)[raw_numbers(data)])[candidates]


def pair_scores(data, examples, candidates, settings=WORLD):
    """Returns [n, c] the sum over history items of log P(item, candidate) / P(item) P(candidate).

    It knows all pairs, and takes the items of a history for independent, as systems do that add up
    what each item says; log P(candidate) is added.
    """
    probability = item_probabilities(settings)[:, raw_numbers(data)]
    alone = probability.mean(axis=0)
    pairs = probability.T @ probability / len(probability)
    information = np.log(pairs / np.outer(alone, alone))
    histories = {history.user_id: history.item_ids for history in data.histories}
    scores = np.empty(candidates.shape)
    for row, example in enumerate(examples):
        seen = list(histories[example.user_id][: example.position])
        scores[row] = information[np.ix_(seen, candidates[row])].sum(axis=0)
    return scores + np.log(alone)[candidates]
