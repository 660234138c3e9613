"""The shape of the house (docs/design.md), read off the syntax trees: imports point down, randomness has its rooms."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import vrpo

ROOT = Path(vrpo.__file__).parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))

RANK = {  # a module imports modules of lower rank only
    "leaves": 0,
    "types": 0,
    "structures": 1,
    "store": 0,
    "draws": 1,
    "coupling": 1,
    "losses": 2,
    "sketch": 2,
    "plans": 2,
    "estimator": 3,
    "reference": 4,
    "preference": 5,
    "kept_graphs": 6,
    "one_pass": 6,
    "fields": 7,
    "diagnostics": 7,
    "training": 8,
    "answering": 8,
    "variance": 9,
    "planning": 9,
    "pairs": 9,
    "evals": 10,
    "export": 10,
    "rounds": 11,
    "demo": 11,
    "cli": 12,
    "__main__": 13,
}
SIDE = {"models", "data", "decoding", "rewards"}  # import types, the store, themselves, and each other's protocols
ALLOWED = {  # what else a side branch may import
    ("data", "draws", "draw_key"),
    ("decoding", "data", "asked"),  # a model is asked as it was trained
    ("models", "rewards", "Answer"),  # what the protocol Judge is about: a reward model is a judge
    ("models", "rewards", "Verdict"),
}
ABOVE = {name for name, rank in RANK.items() if rank > 7} | {"fields"}
THIRD_PARTY: dict[str, set[str]] = {  # package -> the rooms (first folder or module) that may import it
    "transformers": {
        "models",
        "training",
        "data",
        "fields",
        "planning",
        "rounds",
        "export",
        "answering",
        "pairs",
        "evals",
        "variance",
        "demo",
        "cli",
    },
    "peft": {
        "models",
        "training",
        "data",
        "fields",
        "planning",
        "rounds",
        "export",
        "answering",
        "pairs",
        "evals",
        "variance",
        "demo",
        "cli",
    },
    "accelerate": {
        "models",
        "training",
        "data",
        "fields",
        "planning",
        "rounds",
        "export",
        "answering",
        "pairs",
        "evals",
        "variance",
        "demo",
        "cli",
    },
    "datasets": {"data", "training", "evals", "variance", "planning", "demo"},
    "matplotlib": {"diagnostics", "demo"},
    "lm_eval": {"evals"},
    "math_verify": {"rewards"},
    "langdetect": {"rewards"},
    "scipy": {"evals", "diagnostics"},
}
CORE = {"leaves", "types", "structures", "draws", "coupling", "plans", "sketch", "losses"}
CORE |= {"estimator", "reference", "preference", "kept_graphs", "one_pass"}
CORE_IMPORTS = {"torch", "jaxtyping"}
RANDOM_ROOMS = {"draws.py", "models/tiny.py", "models/adapter.py"}  # seeded initialisation; and decoding/
RANDOM_TORCH = {  # a seeded torch.Generator may be made anywhere above the core, to be passed to decoding/
    "bernoulli",
    "manual_seed",
    "multinomial",
    "normal",
    "poisson",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "random",
    "randperm",
    "seed",
}
RANDOM_METHODS = {
    "bernoulli_",
    "cauchy_",
    "exponential_",
    "geometric_",
    "log_normal_",
    "multinomial",
    "normal_",
    "random_",
    "uniform_",
}


PLOTS = "diagnostics/plots.py"  # the one module that draws pictures, beside the demo's


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def room(module: str) -> str:
    """`vrpo.models.hf` or models/hf.py -> models; `vrpo.types` or types.py -> types."""
    parts = module.removesuffix(".py").replace("/", ".").removeprefix("vrpo.").split(".")
    return parts[0]


def imports(file: str) -> Iterator[tuple[str, str | None]]:
    """(module, name) of every import in a file, lazy ones included; name None for `import module`."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            for alias in node.names:
                if node.module == "vrpo":
                    yield f"vrpo.{alias.name}", None
                else:
                    yield str(node.module), alias.name


def is_protocol(module: str, name: str | None) -> bool:
    path = ROOT / (module.removeprefix("vrpo.").replace(".", "/") + ".py")
    if name is None or not path.is_file():
        return False
    classes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef))
    return any(
        c.name == name and any(isinstance(base, ast.Name) and base.id == "Protocol" for base in c.bases)
        for c in classes
    )


def upward(file: str) -> Iterator[str]:
    """Imports of a file that do not point down, and a room that has no place."""
    here = room(file)
    if here == "__init__":
        yield from (f"{file} imports {module}" for module, _ in imports(file) if module.startswith("vrpo"))
        return
    if here not in RANK and here not in SIDE:
        yield f"{file}: a new room; give it its place in RANK or SIDE, and in docs/design.md"
        return
    for module, name in imports(file):
        there = room(module) if module.startswith("vrpo.") else here
        if there in (here, "__version__"):
            continue
        if here in SIDE:
            allowed = there in ("types", "structures", "store") or (here, there, name) in ALLOWED
            allowed = allowed or (there in SIDE and is_protocol(module, name))
        else:
            allowed = here not in CORE if there in SIDE else RANK.get(there, len(RANK)) < RANK[here]
        if not allowed:
            yield f"{file} imports {module} ({name})"


def test_imports_point_down() -> None:
    """types < structures, draws < plans, losses < estimator < reference < preference < training < demo < cli."""
    assert not [each for file in FILES for each in upward(file)]


def foreign(file: str) -> Iterator[str]:
    """Packages that a file imports and that belong elsewhere."""
    here = room(file)
    for module, _ in imports(file):
        package = module.split(".")[0]
        right = here in THIRD_PARTY.get(package, {here})
        if package == "matplotlib":
            right = file == PLOTS or here == "demo"
        if here in CORE:
            right = package in CORE_IMPORTS | {"vrpo"} | sys.stdlib_module_names
        if not right:
            yield f"{file} imports {module}"


def test_third_parties_stay_in_their_rooms() -> None:
    """The core is torch and jaxtyping; plots, trainers and hubs are reached from where they belong."""
    assert not [each for file in FILES for each in foreign(file)]


def chain(node: ast.expr) -> list[str]:
    """a.b.c -> [a, b, c]; [] for anything else."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (before := chain(node.value)):
        return [*before, node.attr]
    return []


def random_uses(module: ast.Module) -> Iterator[int]:
    """Lines that use a source of random numbers: torch's, Python's or numpy's."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names}
            source = node.module if isinstance(node, ast.ImportFrom) else None
            if source in ("random", "secrets", "numpy.random", "torch.random") or names & {"random", "secrets"}:
                yield node.lineno
            if source == "torch" and names & RANDOM_TORCH:
                yield node.lineno
        elif isinstance(node, ast.Attribute):
            path = chain(node)
            if path[:1] == ["torch"] and set(path[1:]) & RANDOM_TORCH:
                yield node.lineno
            if path[:2] in (["np", "random"], ["numpy", "random"]):
                yield node.lineno
            if node.attr in RANDOM_METHODS:
                yield node.lineno


def test_randomness_has_its_rooms() -> None:
    """Masks drawn from a generator's state cannot be replayed: keyed hashes, or a passed generator in decoding/. The
    core has no generator at all."""
    elsewhere = [file for file in FILES if file not in RANDOM_ROOMS and room(file) != "decoding"]
    assert not [f"{file}:{line}" for file in elsewhere for line in random_uses(tree(file))]
    for file in (file for file in FILES if room(file) in CORE):
        assert not list(random_uses(tree(file))), file
        assert "Generator" not in {node.attr for node in ast.walk(tree(file)) if isinstance(node, ast.Attribute)}, file


def test_the_search_for_randomness_can_fail() -> None:
    guilty = "import random\nfrom torch import randperm\ntorch.rand(3)\nx.bernoulli_()\nnp.random.rand()\n"
    assert set(random_uses(ast.parse(guilty))) == {1, 2, 3, 4, 5}
    assert not list(random_uses(ast.parse("torch.zeros(3)\nself.random_walk()\n")))


def careless(file: str) -> Iterator[str]:
    """Where a file is long, imports annotations, guesses attributes or keywords, runs remote code, has a main guard."""
    text, module = (ROOT / file).read_text(), tree(file)
    if len(text.splitlines()) >= 400 or Path(file).name in ("utils.py", "helpers.py", "common.py"):
        yield f"{file}: 400 lines or more, or a name that says nothing"
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            yield f"{file}:{node.lineno} imports annotations"
        if isinstance(node, ast.Call):
            if chain(node.func) in (["hasattr"], ["kwargs", "get"]):
                yield f"{file}:{node.lineno} guesses"
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else False
                if keyword.arg == "trust_remote_code" and value:
                    yield f"{file}:{node.lineno} runs remote code"
    for statement in module.body:
        if isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test):
            yield f"{file}:{statement.lineno} has a main guard"


def test_style() -> None:
    assert not [each for file in FILES for each in careless(file)]


SPEAK_OF_TOKENS = {  # files that may hold the text of a special token, or its id
    "models/facts.py",  # the one table
    "models/tiny.py",  # makes a tokenizer
    "rewards/syscalls.py",  # no tokens: the kernel's numbers are of that size
    "rewards/extract.py",  # end tokens that stand in answers as text, whoever wrote them
}


def tokens_in(module: ast.Module) -> Iterator[int]:
    """Lines with the id of a token of a published vocabulary, or its text; docstrings may speak of them."""
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(module):
        if not isinstance(node, ast.Constant) or id(node) in documentation:
            continue
        if isinstance(node.value, str) and re.search(r"<\|\w+\|>", node.value):
            yield node.lineno
        if type(node.value) is int and 100_000 < node.value < 1_000_000:
            yield node.lineno


def test_one_table_knows_tokens() -> None:
    """Magic ids spread over files are what goes wrong at the next checkpoint: models/facts.py names them."""
    others = [file for file in FILES if file not in SPEAK_OF_TOKENS]
    assert not [f"{file}:{line}" for file in others for line in tokens_in(tree(file))]


def test_the_search_for_offenders_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: a search that finds nothing, whatever stands in a file."""
    (tmp_path / "draws.py").write_text(
        "from __future__ import annotations\nimport peft\nfrom vrpo.training.base import x\nhasattr(x, 'y')\n"
        "if __name__ == '__main__':\n    f(trust_remote_code=True)\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    tree.cache_clear()
    assert [len(list(search("draws.py"))) for search in (upward, foreign, careless)] == [1, 1, 4]
    tree.cache_clear()


def test_the_search_for_tokens_can_fail() -> None:
    guilty = '"""Of <|mask|>."""\nx = 126336\ny = \'<|mask|>\'\nz = 4096\n'
    assert list(tokens_in(ast.parse(guilty))) == [2, 3]


def test_importing_vrpo_imports_nothing_heavy() -> None:
    """`import vrpo` and `dir(vrpo)` stay light; every public name resolves to something."""
    code = (
        "import sys, vrpo; assert vrpo.__version__; assert 'elbo' in dir(vrpo);"
        "import logging; assert logging.getLogger('bitsandbytes.backends.cpu.ops').level == logging.ERROR;"
        "heavy = {'torch', 'transformers', 'numpy', 'peft', 'datasets'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_exist() -> None:
    assert not [name for name in vrpo.__all__ if getattr(vrpo, name) is None]


def test_a_submodule_never_hides_a_public_function() -> None:
    """vrpo.elbo must be the function even after `import vrpo.estimator`: no top-level module has a public name."""
    assert not {Path(file).stem for file in FILES if "/" not in file} & set(vrpo.__all__)
    assert not {path.name for path in ROOT.iterdir() if path.is_dir()} & set(vrpo.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        vrpo.nonsense  # noqa: B018


def test_the_core_is_read_over_one_coffee() -> None:
    """types, draws, estimator, preference and the first page of losses: lines, words, parameters of a function."""
    pages = [(ROOT / f"{name}.py").read_text() for name in ("types", "draws", "estimator", "preference")]
    pages.append((ROOT / "losses/objective.py").read_text().partition("@runtime_checkable\nclass ItemObjective")[0])
    assert sum(len(page.splitlines()) for page in pages) <= 650
    assert sum(len(page.split()) for page in pages) <= 3800
    for file in (file for file in FILES if room(file) in CORE):
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.FunctionDef):
                names = [each.arg for each in (*node.args.args, *node.args.kwonlyargs) if each.arg != "self"]
                assert len(names) <= 8, f"{file}: {node.name} has {len(names)} parameters"
