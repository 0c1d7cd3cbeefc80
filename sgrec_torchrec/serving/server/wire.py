"""Bodies of requests and answers: the fields, their bounds, and examples."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sgrec_torchrec.logs.columns import MAX_ID_CHARACTERS
from sgrec_torchrec.serving.catalogue import shown
from sgrec_torchrec.serving.history import MAX_SECONDS
from sgrec_torchrec.serving.server.errors import RequestError

SHOWN_ERRORS = 3
MAX_ERRORS = 100
"""Beyond that they are counted, not listed: listing takes longer than serving."""
# One longer than those of a log is unknown as any other; the body bounds them.
Id = str | int
# 64 bits, as any log's.
UserId = str | Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]
Second = Annotated[int, Field(ge=0, lt=MAX_SECONDS)]
Name = Annotated[str, Field(max_length=MAX_ID_CHARACTERS)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
# A body can hold as many errors as entries: the first of a list ends its check.
Ids = Annotated[list[Id], Field(fail_fast=True)]
Seconds = Annotated[list[Second], Field(fail_fast=True)]
Names = Annotated[list[Name | None], Field(fail_fast=True)]
Numbers = Annotated[list[Finite | None], Field(fail_fast=True)]
BRANCHES = frozenset({"str", "int", "constrained-int"})
"""Of a union, as pydantic names them: a client knows the field alone."""


class Strict(BaseModel):
    """No unknown field, and no value of another type made to fit."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FilterFields(Strict):
    """Which items may be recommended; all conditions hold together."""

    seen: bool | None = Field(
        default=None,
        description="True leaves out what the history holds; null: as trained.",
    )
    blocked: Ids = Field(default=[], description="Not these items.")
    allowed: Ids | None = Field(default=None, description="Only these items.")
    category: Name | None = Field(
        default=None, description="Only items of this category."
    )
    max_per_prefix: int | None = Field(
        default=None, ge=1, description="Most items that share their first codes."
    )
    prefix_length: int = Field(
        default=1, ge=1, le=8, description="How many first codes."
    )


class RecommendRequest(Strict):
    """One user's history, and what is asked for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"history": ["i1", "i2", "i3"], "k": 10},
                {
                    "user": "u42",
                    "history": ["i1", "i2"],
                    "timestamps": [1700000000, 1700000060],
                    "k": 5,
                    "filters": {"blocked": ["i7"], "max_per_prefix": 2},
                    "explain": True,
                },
                {"history": [], "k": 3},
                {"user": 42, "history": ["i1", "newer than the model"]},
            ]
        }
    )

    user: UserId | None = Field(
        default=None,
        description="Who asks, an integer standing for its text; the next request of "
        "this user is then cheaper. Nobody's history is looked up.",
    )
    history: Ids = Field(
        default=[],
        description="Item ids, oldest first; the newest are read. May be empty. Items "
        "that the model does not have are left out, and the answer says so.",
    )
    strict: bool = Field(
        default=False,
        description="True refuses a history with an item that the model does not have.",
    )
    timestamps: Seconds | None = Field(
        default=None, description="Seconds of each event, never falling."
    )
    events: Names | None = Field(
        default=None, description="Event type of each event, null where unknown."
    )
    values: Numbers | None = Field(
        default=None, description="What each event was worth, null where unknown."
    )
    k: int = Field(default=10, ge=1, le=4096, description="Items wanted.")
    filters: FilterFields = FilterFields()
    with_evidence: bool = Field(
        default=True, description="False asks the network alone."
    )
    explain: bool = Field(
        default=False,
        description="Adds the history's items, and which of them are near.",
    )


class Near(BaseModel):
    """An item of the history that begins with the same codes."""

    item_id: str
    title: str
    shared_codes: int


class Item(BaseModel):
    """One recommended item."""

    item_id: str
    title: str
    score: float = Field(description="ln of the probability that the item is next.")
    codes: list[int]
    near: list[Near] | None = Field(
        default=None, description="With `explain`: best first."
    )


class Known(BaseModel):
    """An item of the catalogue."""

    item_id: str
    title: str
    category: str
    codes: list[int]


class RecommendAnswer(BaseModel):
    """At most k items, best first; fewer where the filters leave fewer."""

    items: list[Item]
    events_given: int
    events_read: int = Field(description="The newest, which the network read.")
    events_unknown: int = Field(
        description="Of items that the model does not have: left out."
    )
    notes: list[str] = Field(
        description="What was left out of the request or not known, if anything."
    )
    model: str
    generation: int = Field(description="Counts the models since the server started.")
    history: list[Known] | None = Field(
        default=None, description="With `explain`: the newest items, newest last."
    )


class ItemsAnswer(BaseModel):
    """Items whose title or id has the query."""

    items: list[Known]


class Example(BaseModel):
    """A made-up history: items that lie near each other."""

    name: str
    items: list[Known]


class ExamplesAnswer(BaseModel):
    """Histories to try."""

    examples: list[Example]
    model: str
    max_k: int
    needs_token: bool


class ReloadAnswer(BaseModel):
    """The model that serves now."""

    model: str
    generation: int


class ErrorFields(BaseModel):
    """What was wrong, and what to change."""

    kind: str
    message: str


class ErrorAnswer(BaseModel):
    """Of every refusal."""

    error: ErrorFields


def parse_request(body: bytes) -> RecommendRequest:
    """The fields of a body.

    Raises:
        RequestError: 400 for what is no JSON, 422 for fields that are wrong.
    """
    try:
        return RecommendRequest.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() > MAX_ERRORS:
            raise RequestError(
                422, f"the body has {error.error_count()} unknown or wrong fields"
            ) from None
        found = error.errors(include_url=False, include_context=False)
    if found[0]["type"] == "json_invalid":
        raise RequestError(400, f"the body is no JSON: {found[0]['msg']}")
    told: dict[str, str] = {}
    for one in found:
        place = ".".join(str(part)[:80] for part in one["loc"] if part not in BRANCHES)
        place = place or "the body"
        if place in told:
            told[place] = f"{place}: give a text or an integer, {_given(dict(one))}"
        elif len(told) < SHOWN_ERRORS:
            told[place] = f"{place}: {one['msg']}, {_given(dict(one))}"
    raise RequestError(422, "; ".join(told.values()))


def _given(error: dict[str, Any]) -> str:
    return f"not {shown(error['input'])}"
