"""Guards of the house: the source root, the one-way streets, light imports, no registry address, small files."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "energymt": ROOT / "platform" / "energymt",
    "trainables": ROOT / "trainables",
    "search_spaces": ROOT / "search_spaces",
}
ROOMS = ("records", "operators", "energies", "models", "data", "decoding", "metrics")
# What the science must not know of; training alone may hold Lightning.
OUTSIDE_SCIENCE = (
    *("ray", "mlflow", "lightning", "pytorch_lightning"),
    *(f"energymt.{name}" for name in ("pool", "tracking", "cluster", "sweep", "cli")),
)
HEAVY = ("torch", "transformers", "lightning", "ray", "mlflow", "pandas", "sklearn", "matplotlib")
# Written with character classes, so that this file holds none of what it looks for.
REGISTRY = re.compile(
    r"index[-_]url|find[-_]links|trusted[-_]host"
    r"|pypi[.]org|pythonhosted[.]org|download[.]pytorch|conda[.]anaconda[.]org|https?://\S+/simple\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Import:
    """One imported name; `late` inside a function, `typing` under `if TYPE_CHECKING`."""

    name: str
    line: int
    late: bool
    typing: bool


def house() -> dict[str, Path]:
    """Every module of the three packages, by its dotted name."""
    modules = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            modules[".".join((package, *parts)).removesuffix(".__init__")] = path
    return modules


@cache
def imports(module: str, path: Path) -> list[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return list(_walk(ast.parse(path.read_text("utf-8"), str(path)), package, late=False, typing=False))


def _walk(node: ast.AST, package: str, late: bool, typing: bool) -> Iterator[Import]:
    for name in _names(node, package):
        yield Import(name, getattr(node, "lineno", 0), late, typing)
    late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    guarded = node.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) else []
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, package, late, typing or child in guarded)


def _names(node: ast.AST, package: str) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            return [f"{base}.{alias.name}" for alias in node.names]
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(target)), *_]):
            return [target] if name in ("import_module", "__import__") else []
    return []


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def wrong_turns(modules: dict[str, Path], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{found.line} imports {found.name}"
        for module, path in modules.items()
        for found in imports(module, path)
        if within(found.name, forbidden)
    ]


def route(start: str, modules: dict[str, Path], forbidden: tuple[str, ...]) -> str:
    """The chain of imports that runs with `import start` and ends in something forbidden; empty if there is none."""
    queue, seen = [[start]], {start}
    while queue:
        chain = queue.pop(0)
        for found in imports(chain[-1], modules[chain[-1]]):
            if found.late or found.typing:
                continue
            if within(found.name, forbidden):
                return " -> ".join([*chain, found.name])
            parts = found.name.split(".")
            loaded = {".".join(parts[:end]) for end in range(1, len(parts) + 1)} & set(modules)
            queue.extend([*chain, name] for name in sorted(loaded - seen))
            seen |= loaded
    return ""


def none(found: list[str]) -> None:
    assert not any(found), "\n" + "\n".join(filter(None, found))


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_platform_is_a_source_root_of_one_entry() -> None:
    entries = {path.name for path in (ROOT / "platform").iterdir()} - {"__pycache__"}
    assert entries == {"energymt"}, "platform/ holds energymt/ alone, and never an __init__.py"


@pytest.mark.parametrize("python_path", ["", str(ROOT)])
def test_platform_resolves_to_the_standard_library(python_path: str) -> None:
    found = run_python("import platform; print(platform.__file__)", PYTHONPATH=python_path)
    assert Path(found).samefile(Path(sysconfig.get_path("stdlib")) / "platform.py")


def test_packages_import_one_way() -> None:
    modules = house()
    assert set(PACKAGES) <= set(modules), "each package has an __init__.py"
    for package, forbidden in {
        "energymt": ("trainables", "search_spaces", "tests", "benchmarks"),
        "trainables": ("search_spaces", "tests", "benchmarks"),
        "search_spaces": ("tests", "benchmarks"),
    }.items():
        ours = {name: path for name, path in modules.items() if within(name, (package,))}
        none(wrong_turns(ours, forbidden))


def test_science_knows_nothing_of_the_cluster() -> None:
    modules = house()
    rooms = tuple(f"energymt.{room}" for room in ROOMS)
    science = {name: path for name, path in modules.items() if within(name, rooms)}
    assert "energymt.records" in science
    none(wrong_turns(science, OUTSIDE_SCIENCE))
    none([route(name, modules, OUTSIDE_SCIENCE) for name in science])


def test_a_class_is_called_what_no_other_is() -> None:
    places: dict[str, list[str]] = {}
    for module, path in house().items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))) if within(module, ("energymt",)) else ():
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert "Translator" in places
    none([f"{name} is a class of {' and of '.join(found)}" for name, found in places.items() if len(found) > 1])


def test_training_starts_without_ray_and_mlflow() -> None:
    modules = house()
    starts = [name for name in modules if within(name, ("energymt.training", "trainables"))]
    none([route(name, modules, ("ray", "mlflow")) for name in starts])


def test_importing_energymt_is_light() -> None:
    loaded = run_python("import sys, energymt; print(*sys.modules)").split()
    assert "energymt" in loaded
    assert set(HEAVY) & set(loaded) == set()


@pytest.mark.skipif(not (PACKAGES["energymt"] / "cli.py").exists(), reason="there is no command line yet")
def test_help_is_light() -> None:
    code = """if True:
        import sys
        sys.argv = ["energymt", "--help"]
        from energymt.cli import main
        try:
            status = main()
        except SystemExit as stop:
            status = stop.code
        assert not status, status
        print("modules:", *sys.modules)"""
    shown, _, loaded = run_python(code).rpartition("modules:")
    assert "energymt" in shown, "--help shows its usage"
    assert set(HEAVY) & set(loaded.split()) == set()


def test_no_file_names_a_package_registry() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    assert ROOT / "pyproject.toml" in paths
    none(
        [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
            for path in paths
            for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1)
            if REGISTRY.search(line)
        ]
    )


def test_files_stay_small() -> None:
    limits = {PACKAGES["energymt"] / "training.py": 200}
    folders = [*PACKAGES.values(), ROOT / "tests", ROOT / "benchmarks"]
    lines = {path: len(path.read_text("utf-8").splitlines()) for folder in folders for path in folder.rglob("*.py")}
    assert len(lines) > len(PACKAGES)
    none([f"{path.relative_to(ROOT)} has {n} lines" for path, n in lines.items() if n > limits.get(path, 350)])
