"""The rules of the code base, each as a function that names its offenders."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "sgrec_torchrec"
CODE_FOLDERS = (
    *(PACKAGE, "torchx_components", "benchmarks", "examples", "docs", "tests"),
)

UP_TO_LOGS = {"schema", "hashing", "config", "files", "distributed", "logs"}
UP_TO_TOKENS = UP_TO_LOGS | {"item_graph", "evidence", "item_tokens"}
UP_TO_GENERATOR = UP_TO_TOKENS | {"generator"}
MAY_IMPORT = {
    "schema": set(),
    "hashing": set(),
    "config": {"files"},
    "files": set(),
    "distributed": {"schema", "hashing", "config", "files"},
    "logs": {"schema", "hashing", "config", "files", "distributed"},
    "item_graph": UP_TO_LOGS,
    "evidence": UP_TO_LOGS | {"item_graph"},
    "item_tokens": UP_TO_LOGS | {"item_graph"},
    "generator": UP_TO_TOKENS,
    "reward_table": {"schema", "hashing", "files", "distributed"},
    "judge": UP_TO_TOKENS | {"reward_table"},
    "a2po": UP_TO_GENERATOR | {"reward_table"},
    "evaluation": UP_TO_GENERATOR,
    "report": UP_TO_LOGS | {"judge"},
    "serving": UP_TO_GENERATOR,
    "doctor": {"config"},
    "runs": UP_TO_GENERATOR | {"evaluation", "doctor", "STAGES"},
    "candidates": UP_TO_GENERATOR | {"runs"},
    "experiments": UP_TO_GENERATOR
    | {"a2po", "evaluation", "runs", "reward_table", "serving", "train"},
}
"""Stage -> the others that it may import (itself is understood); ``STAGES`` is a name
of the package itself."""
ENTRY_POINTS = {"train", "cli"}
TRAINING_LOOPS = {
    "generator": {"pretrain", "trainee"},
    "a2po": {"align", "aligner", "figures", "fusion_sample"},
}
"""Of these stages only the loop, what it trains and what it writes may import
distributed; model and loss may not."""
LLM_STACK = (
    *("accelerate", "anthropic", "bitsandbytes", "litellm", "openai", "peft"),
    *("sglang", "trl", "vllm"),
)
FOREIGN_ONLY_IN = {
    "transformers": {"item_tokens", "judge"},
    **{name: {"judge"} for name in LLM_STACK},
}
"""No training process imports an LLM stack; item_tokens encodes titles."""

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_TRAIN_LINES = 150
FORBIDDEN_NAMES = {
    *("token", "tokenize", "tokenizers", "datasets", "evaluate", "logging"),
    *("statistics", "queue", "profile", "requests", "utils", "common", "helpers"),
    "base",
}
COMPARISONS = {"allclose", "equal", "isclose", "array_equal", "array_equiv", "eq"}
PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
PICKLE_ALLOWED = {
    # torch's checkpoint metadata is a pickle: read through an allow-list of classes
    f"{PACKAGE}/distributed/checkpoint_files.py",
}
REGISTRY_HOSTS = tuple(
    ".".join(labels)
    for labels in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("anaconda", "org"),
        ("registry", "npmjs"),
    )
)
TEXT_SUFFIXES = {".cfg", ".ini", ".json", ".md", ".py", ".sh", ".toml", ".yaml", ".yml"}


def code_files(*folders: str) -> list[Path]:
    """Python files below the given folders of the project."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def imported(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Every absolute module name that is imported, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node, node.module or ""
            # `from sgrec_torchrec import train` names a module after `import`
            if node.module == PACKAGE:
                yield from ((node, f"{PACKAGE}.{alias.name}") for alias in node.names)


def forbidden_imports(stage: str, module: str, tree: ast.AST) -> list[ast.AST]:
    """Imports of our own stages against the order, and of an LLM stack."""
    offenders = []
    allowed = MAY_IMPORT.get(stage, set()) | {stage}
    loops = TRAINING_LOOPS.get(stage)
    if loops is not None and module not in loops:
        allowed = allowed - {"distributed"}
    for node, name in imported(tree):
        head, *rest = name.split(".")
        is_ours = head == PACKAGE and rest and stage not in ENTRY_POINTS
        if is_ours and rest[0] not in allowed:
            offenders.append(node)
        if head in FOREIGN_ONLY_IN and stage not in FOREIGN_ONLY_IN[head]:
            offenders.append(node)
    return offenders


def discarded_comparisons(tree: ast.AST) -> list[ast.AST]:
    """Statements that compute a comparison and drop its result."""
    offenders = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Expr):
            continue
        value = node.value
        is_call = isinstance(value, ast.Call) and (
            ast.unparse(value.func).split(".")[-1] in COMPARISONS
        )
        if is_call or isinstance(value, ast.Compare):
            offenders.append(node)
    return offenders


def long_functions(tree: ast.AST) -> list[ast.AST]:
    """Functions of more than ``MAX_FUNCTION_LINES`` lines, docstring included."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]


def splatted_literals(tree: ast.AST) -> list[ast.AST]:
    """Arguments ``*(a, b)``: written so, nobody sees which parameter gets what."""
    return [
        argument
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for argument in node.args
        if isinstance(argument, ast.Starred)
        and isinstance(argument.value, ast.Tuple | ast.List)
    ]


def relative_imports(tree: ast.AST) -> list[ast.AST]:
    """Imports that begin with a dot."""
    return [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]


def unpickling(tree: ast.AST) -> list[ast.AST]:
    """Anything that reads or writes pickles, which run code when read."""
    offenders = [n for n, name in imported(tree) if name.split(".")[0] in PICKLERS]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        is_torch = ast.unparse(node.func) in ("torch.load", "torch.save")
        allows = any(
            keyword.arg == "allow_pickle"
            and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            )
            for keyword in node.keywords
        )
        if is_torch or allows:
            offenders.append(node)
    return offenders


def side_effects(tree: ast.Module) -> list[ast.AST]:
    """Calls and environment writes at import; torch.fx.wrap and typer's list of verbs
    must be there."""
    offenders: list[ast.AST] = []
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = ast.unparse(node.value.func).split(".")[-1]
            if called not in ("wrap", "add_typer"):
                offenders.append(node)
        elif isinstance(node, ast.Assign) and any(
            ast.unparse(target).startswith("os.environ") for target in node.targets
        ):
            offenders.append(node)
    return offenders


def logic_in_init(tree: ast.Module) -> list[ast.AST]:
    """Whatever is neither docstring, import (for types or not), constant nor a lazy
    ``__getattr__``."""
    plain = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    return [
        node
        for node in tree.body
        if not isinstance(node, plain)
        and not (isinstance(node, ast.FunctionDef) and node.name == "__getattr__")
        and not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]


def modules() -> dict[str, Path]:
    """The package's modules by name; a folder by its ``__init__``."""
    found = {}
    for path in code_files(PACKAGE):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def import_circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first one at both ends."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    paths = modules()
    imports = {
        name: {used for _, used in imported(parse(path)) if used in paths} - {PACKAGE}
        for name, path in paths.items()
    }
    assert sum(map(len, imports.values())) > len(paths), "no arrows were read"
    assert import_circle(imports) == []


def test_a_circle_of_imports_is_named() -> None:
    assert import_circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(import_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


def test_few_modules_stand_outside_a_room() -> None:
    loose = {path.stem for path in (ROOT / PACKAGE).glob("*.py")}
    assert loose == {"__init__", *ENTRY_POINTS, "schema", "hashing", "doctor"}


def test_stages_import_one_way() -> None:
    offenders = []
    for path in code_files(PACKAGE):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        assert parts[0] in MAY_IMPORT or parts[0] in ENTRY_POINTS, (
            f"{path}: a new stage; give it a line in MAY_IMPORT"
        )
        for node in forbidden_imports(parts[0], parts[-1], parse(path)):
            offenders.append(f"{place(path, node)} {ast.unparse(node)}")
    assert offenders == []


def test_files_are_short() -> None:
    limits = {ROOT / PACKAGE / "train.py": MAX_TRAIN_LINES}
    offenders = {}
    for path in code_files(*CODE_FOLDERS):
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        if num_lines > limits.get(path, MAX_FILE_LINES):
            offenders[str(path.relative_to(ROOT))] = num_lines
    assert offenders == {}


@pytest.mark.parametrize(
    ("rule", "folders"),
    [
        (long_functions, CODE_FOLDERS),
        (discarded_comparisons, CODE_FOLDERS),
        (relative_imports, CODE_FOLDERS),
        (splatted_literals, (PACKAGE, "torchx_components", "benchmarks", "examples")),
        (side_effects, (PACKAGE, "torchx_components")),
        (unpickling, (PACKAGE, "torchx_components", "benchmarks", "examples")),
    ],
)
def test_no_file_breaks(rule, folders: tuple[str, ...]) -> None:
    offenders = [
        place(path, node)
        for path in code_files(*folders)
        if rule is not unpickling or str(path.relative_to(ROOT)) not in PICKLE_ALLOWED
        for node in rule(parse(path))
    ]
    assert offenders == [], "\n".join(offenders)


def test_init_files_hold_a_docstring_and_no_logic() -> None:
    for path in code_files(PACKAGE, "torchx_components"):
        if path.name == "__init__.py":
            tree = parse(path)
            assert ast.get_docstring(tree), f"{path}: say what it reads and writes"
            assert logic_in_init(tree) == [], path


def test_no_module_has_the_name_of_another_top_level_module() -> None:
    folders = (PACKAGE, "torchx_components", "benchmarks")
    names = {path.stem for path in code_files(*folders)}
    names |= {path.name for path in (ROOT / PACKAGE).rglob("*") if path.is_dir()}
    assert names & FORBIDDEN_NAMES == set()


def test_code_is_ascii() -> None:
    offenders = [
        str(path.relative_to(ROOT))
        for path in code_files(*CODE_FOLDERS)
        if not path.read_text(encoding="utf-8").isascii()
    ]
    assert offenders == []


def project_texts() -> Iterator[Path]:
    """Text files of the project itself, without what tools leave behind."""
    top = [path for path in ROOT.iterdir() if path.is_file()]
    folders = [ROOT / name for name in (*CODE_FOLDERS, ".ci", ".github")]
    below = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    for path in (*top, *below):
        built = {"build", "__pycache__"} & set(path.parts)
        if not built and (path.suffix in TEXT_SUFFIXES or not path.suffix):
            yield path


def test_no_text_names_a_package_registry() -> None:
    offenders = [
        (str(path.relative_to(ROOT)), host)
        for path in project_texts()
        for host in REGISTRY_HOSTS
        if host in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert offenders == []


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        (discarded_comparisons, "torch.allclose(a, b)", "assert torch.allclose(a, b)"),
        (discarded_comparisons, "a == b", "c = a == b"),
        (splatted_literals, "f(*(a, b), c)", "f(a, *rest, b=(c, d))"),
        (relative_imports, "from .schema import X", "from sgrec_torchrec import x"),
        (unpickling, "import pickle", "import json"),
        (unpickling, "torch.load(f)", "load_file(f)"),
        (unpickling, "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=False)"),
        (side_effects, "torch.manual_seed(0)", "torch.fx.wrap('f')"),
        (side_effects, "os.environ['A'] = '1'", "A = 1"),
        (logic_in_init, "if x:\n    y = 1", "def __getattr__(name): ..."),
        (
            long_functions,
            "def f():\n" + " x = 1\n" * 60,
            "def f():\n" + " x = 1\n" * 59,
        ),
    ],
)
def test_rule_tells_bad_from_good(rule, bad: str, good: str) -> None:
    assert len(rule(ast.parse(bad))) == 1
    assert rule(ast.parse(good)) == []


@pytest.mark.parametrize(
    ("stage", "module", "source", "is_allowed"),
    [
        ("logs", "split", "from sgrec_torchrec.schema import X", True),
        ("logs", "split", "from sgrec_torchrec.item_graph import X", False),
        ("logs", "split", "from sgrec_torchrec import item_graph", False),
        ("logs", "split", "def f():\n import sgrec_torchrec.generator.beam", False),
        ("generator", "pretrain", "import sgrec_torchrec.distributed.launch", True),
        ("generator", "model", "import sgrec_torchrec.distributed.launch", False),
        ("generator", "model", "import transformers", False),
        ("item_tokens", "text", "from transformers import AutoModel", True),
        ("item_tokens", "text", "import openai", False),
        ("a2po", "align", "import sgrec_torchrec.judge.ask.prompt", False),
        ("reward_table", "build", "import sgrec_torchrec.config", False),
        ("evaluation", "ranking", "import sgrec_torchrec.a2po.loss", False),
        ("cli", "cli", "import sgrec_torchrec.a2po.align", True),
    ],
)
def test_import_order(stage: str, module: str, source: str, is_allowed: bool) -> None:
    assert (forbidden_imports(stage, module, ast.parse(source)) == []) is is_allowed
