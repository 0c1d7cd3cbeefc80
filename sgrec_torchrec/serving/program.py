"""Backbone and code decoder as compiled programs, which run on a package's weights.

Made by ``torch.export`` and AOTInductor for any number of users, events and beams. A
file holds native code and no weights. Whoever loads it runs the code of who made the
package, which no sum can vouch for: so it is loaded only where the caller asks for it,
and only on a host that has all that the code was compiled for. Nothing is unpickled.

Letters: B users, R users of a group, T positions of all histories, P padded places of a
group, W beams, L levels, l codes chosen, Y layers, H heads, D width, K codes.
"""

import platform
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgrec_torchrec.generator.attention import AttentionGroups
from sgrec_torchrec.generator.backbone import Backbone, rotary_angles, walk
from sgrec_torchrec.generator.decoder import CodeDecoder
from sgrec_torchrec.serving.network import DensePart

ENCODER = "encoder.pt2"
MAX_LEVELS = 8
PROGRAM_FILES = (ENCODER, *(f"level-{level}.pt2" for level in range(MAX_LEVELS)))
INDUCTOR = {
    # Else the number of threads of the exporting process would be compiled in.
    "cpp.dynamic_threads": True,
    # No instruction beyond those that ``host`` records.
    "cpp.march": "",
    # The weights stay in one file, and are shared with the network.
    "aot_inductor.package_constants_in_so": False,
}


class Program:
    """``Backbone.read`` and ``CodeDecoder`` up to rounding; threads may share it."""

    def __init__(self, folder: Path, tower: DensePart) -> None:
        """Run the native code in ``folder`` on the weights of ``tower``.

        Raises:
            RuntimeError: where this host cannot load it.
            KeyError: where the code wants weights that the network lacks.
        """
        self._weights = tower.state_dict()
        self._head_dim = tower.backbone.head_dim
        names = program_files(tower.decoder.num_levels)
        self._loaded = [self._load(folder / name) for name in names]
        # Each has unpacked its code into a temporary folder, which its end removes.
        weakref.finalize(self, self._loaded.clear)

    def read(self, input_TD: Tensor, offsets_B1: Tensor) -> tuple[Tensor, list[Tensor]]:
        """float [B, D] after each history, and of each float [Y, T, 2, H, D / H].

        ``input_TD`` and ``offsets_B1`` as ``Backbone.read`` takes them.
        """
        groups = AttentionGroups(offsets_B1)
        length_B = offsets_B1.diff()
        hidden_BD = input_TD.new_empty((len(length_B), input_TD.shape[1]))
        past_of: dict[int, Tensor] = {}
        for members, index_RP in zip(groups.members, groups.padded_index, strict=True):
            rotation = rotary_angles(torch.arange(index_RP.shape[1]), self._head_dim)
            last_R = length_B[members] - 1
            inputs = [input_TD[index_RP], *rotation, last_R]
            hidden_BD[members], past = self._loaded[0].boxed_run(inputs)
            rows = zip(members.tolist(), past, (last_R + 1).tolist(), strict=True)
            past_of |= {user: one[:, :length].clone() for user, one, length in rows}
        return hidden_BD, [past_of[user] for user in range(len(length_B))]

    def user_part(self, level: int, hidden_XD: Tensor) -> Tensor:
        """As it is: ``logits`` projects it."""
        del level
        return hidden_XD

    def logits(self, level: int, user_part_XM: Tensor, codes_Xl: Tensor) -> Tensor:
        """float [B, W, K], as ``CodeDecoder.logits``, of [B, 1, D] and [B, W, l]."""
        (logits_XK,) = self._loaded[1 + level].boxed_run([user_part_XM, codes_Xl])
        return logits_XK

    def _load(self, path: Path) -> torch._C._aoti.AOTIModelPackageLoader:
        # Not torch._inductor.aoti_load_package: that unpickles what else a file holds.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        wanted = {name: self._weights[name] for name in loader.get_constant_fqns()}
        # use_inactive, check_full_update, user_managed: the tensors stay the network's.
        loader.load_constants(wanted, False, True, True)
        return loader


def program_files(num_levels: int) -> tuple[str, ...]:
    """Names of a package's programs: the encoder, then a step of each level."""
    return PROGRAM_FILES[: 1 + num_levels]


def host() -> dict[str, Any]:
    """What compiled code depends on, of this machine."""
    found = torch.cpu.get_capabilities()
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpu": sorted(name for name, value in found.items() if value is True),
    }


def lacking(made_on: Mapping[str, Any]) -> str | None:
    """What this machine lacks of the one that compiled; None where nothing is.

    Raises:
        KeyError, TypeError: where ``made_on`` is not what ``host`` gave.
    """
    here = host()
    for name in ("torch", "machine"):
        if here[name] != made_on[name]:
            return f"{name} {made_on[name]} (here {here[name]})"
    missing = sorted(set(made_on["cpu"]) - set(here["cpu"]))
    return f"a CPU with {', '.join(map(str, missing))}" if missing else None


def compile_programs(tower: DensePart, folder: Path) -> dict[str, Any]:
    """Write the programs of a network; takes about a minute, and a C++ compiler.

    Returns:
        ``host``, for the manifest.

    Raises:
        ValueError: where the compiler is missing or fails.
    """
    width = tower.backbone.input_norm.weight.shape[0]
    rows, places, beams = (torch.export.Dim(name) for name in ("R", "P", "W"))
    rotation = rotary_angles(torch.arange(7), tower.backbone.head_dim)
    last_R = torch.tensor([6, 2, 4])
    sizes = ({0: rows, 1: places}, {0: places}, {0: places}, {0: rows})
    inputs = (torch.randn(3, 7, width), *rotation, last_R)
    _compile(PaddedReader(tower.backbone), inputs, sizes, folder / ENCODER)
    for level in range(tower.decoder.num_levels):
        # At the first level there is one beam, and no code yet.
        codes = torch.zeros((3, 5 if level else 1, level), dtype=torch.int64)
        of_codes = {0: rows, 1: beams} if level else {0: rows}
        path = folder / PROGRAM_FILES[1 + level]
        step = _Step(tower.decoder, level)
        asked = (torch.randn(3, 1, width), codes)
        _compile(step, asked, ({0: rows}, of_codes), path)
    return host()


class PaddedReader(nn.Module):
    """``Backbone.read`` over padded histories; padding stands at the end."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(
        self, input_RPD: Tensor, cos: Tensor, sin: Tensor, last_R: Tensor
    ) -> tuple[Tensor, Tensor]:
        """float [R, D] at the last positions and [R, Y, P, 2, H, D / H]."""
        state_RPD = self.backbone.input_norm(input_RPD)
        keep: list[Tensor] = []
        *below, top = self.backbone.stack()

        def attend(_: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keep.append(torch.stack((key, value), dim=2))
            mixed = F.scaled_dot_product_attention(
                query.transpose(1, 2),
                key.transpose(1, 2),
                value.transpose(1, 2),
                is_causal=True,
            )
            return mixed.transpose(1, 2)

        state_RPD = walk(below, state_RPD, (cos, sin), attend)
        key, value = top.key_value_of(state_RPD, (cos, sin))
        keep.append(torch.stack((key, value), dim=2))
        # len() would make the size a constant of the program.
        state_RD = state_RPD[torch.arange(input_RPD.shape[0]), last_R]
        query = top.query_of(state_RD, (cos[last_R], sin[last_R]))
        is_real_RP = torch.arange(input_RPD.shape[1]) <= last_R[:, None]
        mixed = F.scaled_dot_product_attention(
            query[:, :, None],
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=is_real_RP[:, None, None],
        )
        hidden_RD = self.backbone.output_norm(top(state_RD, mixed.squeeze(2), None))
        return hidden_RD, torch.stack(keep, dim=1)


class _Step(nn.Module):
    """A beam's step at one level."""

    def __init__(self, decoder: CodeDecoder, level: int) -> None:
        super().__init__()
        self.decoder, self.level = decoder, level

    def forward(self, hidden_R1D: Tensor, codes_RWl: Tensor) -> Tensor:
        """float [R, W, K]."""
        part = self.decoder.user_part(self.level, hidden_R1D)
        return self.decoder.logits(self.level, part, codes_RWl)


def _compile(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    sizes: tuple[dict[int, Any], ...],
    path: Path,
) -> None:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # torch warns of its own insides.
            warnings.simplefilter("ignore", FutureWarning)
            exported = torch.export.export(
                module.eval(), inputs, dynamic_shapes=sizes, strict=False
            )
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(path), inductor_configs=dict(INDUCTOR)
            )
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"{path.name} cannot be compiled ({error}): install g++, or leave --compile"
            " out"
        ) from error
