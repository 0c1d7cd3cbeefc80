"""Commands whose ``--help`` also names what installed packages add to a registry."""

from typing import Any

from typer.core import TyperCommand

from sgrec_torchrec.config.registry import Registry


def listing(registry: Registry[Any]) -> type[TyperCommand]:
    """A class for ``command(cls=...)``; packages are looked at when help is."""

    class Listing(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            names = [registry.signature(name) for name in registry.from_packages()]
            if names:
                self.epilog = f"From installed packages: {', '.join(names)}."
            super().format_help(ctx, formatter)

    return Listing
