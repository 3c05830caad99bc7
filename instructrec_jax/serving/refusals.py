"""Requests that are refused: a status, a code for programs, one sentence for people."""

import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from instructrec_jax.serving.bodies import Problem, Refusal

_MAX_PLACE = 80  # characters of the name of a field, which a stranger chose


class RefusedError(Exception):
    """A request that is not answered.

    Attributes:
      status: of HTTP.
      code: the kind of problem.
      message: one sentence; it repeats no more of the request than its sender needs.
      headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after)))

    def response(self) -> Response:
        """Returns the answer."""
        refusal = Refusal(error=Problem(code=self.code, message=self.message))
        content = json.dumps(refusal.model_dump())  # ASCII: half a character cannot break it
        return Response(content, self.status, headers=self.headers, media_type="application/json")


def parsed(model: type[BaseModel], body: bytes) -> Any:
    """Returns the body of a request.

    Raises:
      RefusedError: if it is no JSON (400), or holds something else than the model says (422).
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_context=False, include_input=False)
    if first["type"] == "json_invalid":
        raise RefusedError(400, "not_json", f"the body is not JSON: {first['msg']}")
    place = ".".join(map(str, first["loc"]))[:_MAX_PLACE] or "the body"
    more = f" (and {len(others)} more)" if others else ""
    raise RefusedError(422, "bad_request", f"{place}: {first['msg']}{more}")
