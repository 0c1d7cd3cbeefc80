"""The generator's tables by name, whoever holds them: TorchRec's shards or a server."""

from sgrec_torchrec.schema import feature_names


def table_rows(
    *,
    num_items: int,
    num_levels: int,
    num_codes: int,
    num_gap_buckets: int,
    num_event_types: int,
    num_value_buckets: int,
) -> dict[str, tuple[int, list[str]]]:
    """Of each table the number of rows and the features that look it up.

    Row 0 of every table is the begin marker (or: nothing known). The item table grows
    with the catalogue, the code table with L * K; the others are constant.
    """
    return {
        "item": (num_items + 1, ["item"]),
        "code": (num_levels * num_codes + 1, feature_names(num_levels)[1:-3]),
        "gap": (num_gap_buckets, ["gap"]),
        "event": (num_event_types + 1, ["event"]),
        "value": (num_value_buckets, ["value"]),
    }
