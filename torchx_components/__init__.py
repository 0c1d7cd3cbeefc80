"""torchx components of this project: reads a command line, writes a torchx ``AppDef``.

``torchx run dist.ddp ...`` finds them through the entry points in ``pyproject.toml``.
"""
