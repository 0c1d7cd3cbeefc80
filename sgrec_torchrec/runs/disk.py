"""Room for the checkpoints of a run, asked for once its log is read."""

import torch

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.files.room import bytes_below, check_room, gib
from sgrec_torchrec.files.run_folder import ALIGNED, BEST, CHECKPOINTS
from sgrec_torchrec.generator.backbone import Backbone
from sgrec_torchrec.generator.decoder import CodeDecoder
from sgrec_torchrec.generator.table_rows import table_rows
from sgrec_torchrec.logs.stream import resolved
from sgrec_torchrec.schema import SplitLog


def check_room_for_states(split: SplitLog, config: RunConfig) -> None:
    """Raise where the checkpoints of pretraining and post-training would not fit.

    Either needs checkpoint x (``keep_checkpoints`` + 2): those that it keeps, the best,
    and the one that is written before an older one goes. What it has written before
    gives way. All else that training writes is small beside these. No communication.

    Args:
        config: resolved on the log.

    Raises:
        OSError: as ``check_room``.
    """
    if not is_main_rank():
        return
    each, run_dir = checkpoint_bytes(split, config), config.run_dir
    loops = [("pretrain", config.pretrain.keep_checkpoints, run_dir)]
    if config.align.num_steps:
        loops.append(("align", config.align.keep_checkpoints, run_dir / ALIGNED))
    needed = sum(
        max(0, each * (kept + 2) - bytes_below([place / BEST, place / CHECKPOINTS]))
        for _, kept, place in loops
    )
    told = " and ".join(f"{name}.keep_checkpoints = {kept}" for name, kept, _ in loops)
    check_room(run_dir, needed, f"checkpoints of {gib(each)} each: lower {told}")


def checkpoint_bytes(split: SplitLog, config: RunConfig) -> int:
    """Of weights and optimizer: 4 x (rows x (width + 1) + 3 x other parameters).

    Row-wise Adagrad keeps a number beside each row, AdamW two beside each parameter.
    """
    settings, tokens = config.generator, config.tokens
    num_codes = resolved("tokens.num_codes", tokens.num_codes)
    tables = table_rows(
        num_items=split.sequences.num_items,
        num_levels=tokens.num_levels,
        num_codes=num_codes,
        num_gap_buckets=settings.num_gap_buckets,
        num_event_types=split.sequences.num_event_types,
        num_value_buckets=settings.num_value_buckets,
    )
    rows = sum(num_rows for num_rows, _ in tables.values())
    with torch.device("meta"):
        parts = (
            Backbone.of(settings),
            CodeDecoder.of(settings, tokens.num_levels, num_codes),
        )
    others = sum(value.numel() for part in parts for value in part.parameters())
    return 4 * (rows * (settings.dim + 1) + 3 * others)
