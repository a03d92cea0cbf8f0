"""The house of DESIGN.md: who may import whom, and what may be nowhere. Reads the source, runs none of it."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MIDDLE = ("actors", "reward_service", "learner")
ROOMS = ("common", *MIDDLE, "deploy")
MAY_IMPORT = {
    "common": {"common"},
    "actors": {"common", "actors"},
    "reward_service": {"common", "reward_service"},
    "learner": {"common", "learner"},
    "deploy": {"common", *MIDDLE, "deploy"},
}
RAY_SHELLS = {f"{room}/ray_actor.py" for room in MIDDLE}
HEAVY = {"torch", "ray", "transformers", "datasets", "accelerate", "numpy"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 60
TOP_LEVEL_FOLDERS = {*ROOMS, "tests", "docs"}
LEFT_BY_TOOLS = {"runs", "build", "dist", "__pycache__", "minichatgpt.egg-info"}

FILES = {
    str(path.relative_to(ROOT)): path
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("*.py"))
    if "__pycache__" not in path.parts
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of all that is imported, inside of functions too; relative imports begin with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or attribute, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def names_used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every attribute access, and of everything imported."""
    yield from imports(tree)
    yield from ((node.lineno, dotted(node)) for node in ast.walk(tree) if isinstance(node, ast.Attribute))


def uses(*forbidden: str) -> list[str]:
    """Places that use one of the dotted names, or something below it."""
    return [
        f"{file}:{line} {name}"
        for file, tree in TREES.items()
        for line, name in names_used(tree)
        if any(name == bad or name.startswith(f"{bad}.") for bad in forbidden)
    ]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_room_is_there():
    assert {name.split("/")[0] for name in FILES} == set(ROOMS)


def test_rooms_import_only_from_below():
    wrong = [
        f"{file}:{line} imports {name}"
        for file, tree in TREES.items()
        for line, name in imports(tree)
        if name.split(".")[0] in ROOMS and name.split(".")[0] not in MAY_IMPORT[file.split("/")[0]]
    ]
    assert not wrong


def test_nobody_imports_tests_or_by_relative_path():
    wrong = [
        f"{file}:{line} imports {name}"
        for file, tree in TREES.items()
        for line, name in imports(tree)
        if name.startswith(".") or name.split(".")[0] in ("tests", "conftest")
    ]
    assert not wrong


def test_nothing_is_imported_by_a_name_that_only_appears_at_run_time():
    """But for the function that a user names, in the process that is there for it."""
    places = uses(
        "importlib.import_module",
        "importlib.util.module_from_spec",
        "importlib.util.spec_from_file_location",
        "pkgutil.resolve_name",
        "runpy",
    )
    assert [place.split(":")[0] for place in places] == ["reward_service/function_host.py"]
    calls = [
        f"{file}:{node.lineno}"
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and dotted(node.func) in ("__import__", "exec", "eval")
    ]
    assert not calls


def test_ray_is_imported_only_by_the_shells_and_the_roof():
    with_ray = {file for file, tree in TREES.items() for _, name in imports(tree) if name.split(".")[0] == "ray"}
    assert with_ray >= RAY_SHELLS
    assert {file for file in with_ray if not file.startswith("deploy/")} == RAY_SHELLS


def test_only_the_roof_imports_the_shells():
    shells = {name.removesuffix(".py").replace("/", ".") for name in RAY_SHELLS}
    importers = {file for file, tree in TREES.items() for _, name in imports(tree) if name in shells}
    assert importers
    assert {file.split("/")[0] for file in importers} == {"deploy"}


def test_the_process_of_a_users_function_imports_nothing_of_ours():
    """It is run as a program, wherever the replica is, and starts fast."""
    wrong = [
        name
        for _, name in imports(TREES["reward_service/function_host.py"])
        if name.split(".")[0] not in sys.stdlib_module_names
    ]
    assert not wrong


@pytest.mark.parametrize(
    "module",
    ["common.config", "common.config_file", "common.data_config", "common.ppo_config", "common.errors", "deploy.cli"],
)
def test_heavy_packages_stay_out_of_what_only_reads_a_configuration(module):
    code = f"import {module}, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert module.split(".")[0] in loaded
    assert not loaded & HEAVY


def test_local_runtime_and_pipeline_need_no_ray():
    code = "import deploy.local, deploy.pipeline, deploy.run, sys; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_nothing_is_pickled():
    forbidden = ("pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "torch.load", "torch.save")
    assert not uses(*forbidden, "numpy.load", "np.load", "numpy.save", "np.save")


def test_no_broad_except():
    broad = {"Exception", "BaseException"}

    def caught(handler: ast.ExceptHandler) -> set[str]:
        if handler.type is None:
            return broad
        return {dotted(node) for node in ast.walk(handler.type)}

    wrong = [
        f"{file}:{node.lineno}"
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and caught(node) & broad
    ]
    wrong += uses("contextlib.suppress")
    assert not wrong


def test_no_module_bears_the_name_of_a_library():
    taken = sys.stdlib_module_names | set(packages_distributions())
    taken -= {*ROOMS, "__main__"}
    names = {file: Path(file).stem for file in FILES}
    assert not {file for file, name in names.items() if name in taken and not name.startswith("__")}


def test_rooms_bear_no_name_of_the_standard_library():
    assert not set(ROOMS) & set(sys.stdlib_module_names)


def test_packages_hold_a_docstring_and_nothing_else():
    for file, tree in TREES.items():
        if file.endswith("__init__.py"):
            assert len(tree.body) <= 1, file
            assert ast.get_docstring(tree), file


def test_tests_are_no_packages():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_top_level_is_as_designed():
    there = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert there - LEFT_BY_TOOLS <= TOP_LEVEL_FOLDERS
    assert there >= {*ROOMS, "tests"}


def test_files_stay_short():
    lengths = {file: len(path.read_text(encoding="utf-8").splitlines()) for file, path in FILES.items()}
    assert not {file: length for file, length in lengths.items() if length >= MAX_FILE_LINES}


def test_functions_stay_short():
    long = {
        f"{file}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for file, tree in TREES.items()
        for node in functions(tree)
        if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert not long


def test_the_environment_is_read_only_by_the_roof():
    places = uses("os.environ", "os.getenv", "os.environb", "os.putenv")
    assert not [place for place in places if not place.startswith("deploy/")]


def test_global_seeds_are_set_only_in_seeds():
    places = uses("torch.manual_seed", "torch.random.manual_seed", "torch.cuda.manual_seed_all", "random.seed")
    places += uses("numpy.random.seed", "np.random.seed", "transformers.set_seed", "accelerate.utils.set_seed")
    assert [place for place in places if place.startswith("common/seeds.py")], "the search itself finds them"
    assert not [place for place in places if not place.startswith("common/seeds.py")]


def test_no_module_state_is_rebound_by_functions():
    wrong = [
        f"{f}:{node.lineno}" for f, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.Global)
    ]
    assert not wrong


def test_every_ray_get_has_a_deadline():
    calls = [
        (f"{file}:{node.lineno}", {keyword.arg for keyword in node.keywords})
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and dotted(node.func) in ("ray.get", "ray.wait")
    ]
    assert calls
    assert not [place for place, keywords in calls if "timeout" not in keywords]
