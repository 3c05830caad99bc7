"""The server of the tests speaks the protocol as OpenAI's own client expects it."""

import openai
import pytest
from openai_server import Faults, OpenAIServer


@pytest.fixture
def server():
    with OpenAIServer(faults=Faults(delay_seconds=0.001)) as running:
        yield running


@pytest.fixture
def client(server):
    with openai.OpenAI(api_key="none", base_url=server.base_url, max_retries=0) as made:
        yield made


def test_completions_with_echo_give_the_log_probabilities_of_the_prompt(client):
    reply = client.completions.create(
        model="tiny-teacher", prompt="one calm river", echo=True, logprobs=1, max_tokens=0
    )
    found = reply.choices[0].logprobs
    assert found.tokens == ["one", " calm", " river"]
    assert found.text_offset == [0, 3, 8]
    assert found.token_logprobs[0] is None and all(p < 0 for p in found.token_logprobs[1:])
    again = client.completions.create(
        model="tiny-teacher", prompt="a calm river", echo=True, logprobs=1, max_tokens=0
    )
    assert again.choices[0].logprobs.token_logprobs[1:] == found.token_logprobs[1:]


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny-teacher"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_it_goes_wrong_as_the_seed_says_whatever_the_order():
    def fates(order):
        faults = Faults(seed=3, dropped_before=0.2, server_errors=0.2, rate_limited=0.2)
        with (
            OpenAIServer(faults=faults) as server,
            openai.OpenAI(api_key="none", base_url=server.base_url, max_retries=0) as client,
        ):
            found = {}
            for number in order:
                try:
                    message = {"role": "user", "content": f"question {number}"}
                    client.chat.completions.create(model="tiny-teacher", messages=[message])
                    found[number] = "answered"
                except openai.OpenAIError as error:
                    found[number] = type(error).__name__
            return found

    assert fates(range(20)) == fates(reversed(range(20)))
    assert len(set(fates(range(20)).values())) == 4
