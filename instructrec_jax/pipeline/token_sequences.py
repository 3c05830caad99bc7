"""The training histories as token ids, for counting what occurs together."""

import numpy as np

from instructrec_jax.pipeline.record_store import RecordSource
from instructrec_jax.pipeline.vocabulary import CorpusVocabulary


def training_token_sequences(dataset: str) -> list[np.ndarray]:
    """Returns the tokens of each user's training titles, one int32 array a user.

    Of a user's training records the last one holds all titles: its history and its target.

    Args:
      dataset: name of a dataset in the data_dir in use.
    """
    titles: dict[bytes, list[bytes]] = {}
    position: dict[bytes, int] = {}
    records = RecordSource(dataset, "leave_one_out").get_dataset("train", shuffle=False)
    for record in records.as_numpy_iterator():
        user = record["user_id"]
        if record["position"] > position.get(user, -1):
            position[user] = record["position"]
            titles[user] = [*record["history"], record["target"]]
    encode = CorpusVocabulary().encode
    return [
        np.array([token for title in of_user for token in encode(title.decode())], np.int32)
        for of_user in titles.values()
    ]
