"""The wheel, the import and the repository: what a user gets, and nothing else."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import argmin_jax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "argmin_jax"

# The rooms, each with those that it may import: data flows one way (see CONTRIBUTING.md).
ROOMS = {
    "identity": set(),
    "program": {"identity"},
    "problem": {"program"},
    "constraints": {"problem"},
    "separability": set(),
    "columns": set(),
    "structure": {"separability", "columns"},
    "quadratic": {"separability"},
    "operators": set(),
    "optimality": {"program", "operators"},
    "triangular": set(),
    "equilibration": {"triangular"},
    "factors": {"triangular", "equilibration"},
    "symmetric": {"structure", "triangular", "equilibration"},
    "conjugate_gradients": set(),
    "matrix_free": {"conjugate_gradients"},
    "lanes": set(),
    "linear_solve": {"structure", "factors", "symmetric", "matrix_free"},
    "implicit": {"linear_solve"},
    "solvers": {
        "identity", "program", "problem", "structure", "optimality", "triangular", "factors",
        "conjugate_gradients",
    },
    "report": {"optimality", "linear_solve"},
    "polish": {"program", "operators", "optimality", "structure", "factors", "linear_solve"},
    "violations": {"program", "structure", "optimality", "matrix_free"},
    "constrained": {
        "program", "structure", "optimality", "factors", "matrix_free", "polish", "violations",
    },
    "certificate": {"optimality", "factors", "linear_solve", "polish"},
    "drift": {"optimality", "factors", "linear_solve", "matrix_free", "polish", "symmetric"},
    "forward": {
        "program", "problem", "structure", "optimality", "factors", "linear_solve", "solvers",
        "report", "polish", "violations", "constrained", "certificate", "drift", "equilibration",
        "quadratic", "matrix_free",
    },
    "rules": {
        "program", "problem", "optimality", "lanes", "linear_solve", "implicit", "report",
        "forward",
    },
    "layer": {
        "program", "problem", "optimality", "linear_solve", "solvers", "report", "forward",
        "rules",
    },
    "relatives": {"problem", "linear_solve", "solvers", "layer"},
    "check": {"layer", "report"},
    "nnx": {"layer", "report"},
}  # fmt: skip


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    from hatchling.builders.wheel import WheelBuilder

    directory = tmp_path_factory.mktemp("dist")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(directory), versions=["standard"])
    with zipfile.ZipFile(path) as archive:
        yield {name: archive.read(name).decode() for name in archive.namelist()}


def test_wheel_holds_the_package_and_nothing_else(wheel):
    tracked = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    packed = {name for name in wheel if ".dist-info/" not in name}
    assert {"argmin_jax/__init__.py", "argmin_jax/py.typed"} <= packed
    assert packed == tracked
    assert {name.split("/")[0] for name in wheel} == {
        "argmin_jax",
        f"argmin_jax-{argmin_jax.__version__}.dist-info",
    }


def test_wheel_says_its_licence_version_and_needs_no_extra(wheel):
    (metadata,) = [text for name, text in wheel.items() if name.endswith("/METADATA")]
    assert f"\nVersion: {argmin_jax.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert any(name.endswith("/licenses/LICENSE") for name in wheel)
    needed = {
        re.split(r"[^\w-]", line.removeprefix("Requires-Dist: "))[0]
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    }
    assert needed == {"equinox", "jax", "jaxtyping", "lineax", "optax", "optimistix"}


@pytest.fixture(scope="module")
def core_alone():
    """What an interpreter without the optional packages, and in JAX's default precision, says."""
    return python("""
import os, sys
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
OPTIONAL = ("flax", "torch", "pandas", "jaxopt", "matplotlib", "sklearn", "orbax", "rich")

class NotInstalled:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in OPTIONAL:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled)
try:
    import flax
except ModuleNotFoundError:
    print("blocked")
import jax
import argmin_jax
print("x64", jax.config.jax_enable_x64)
objective = lambda y, t: (y - 2 * t) ** 2
y, slope = jax.value_and_grad(lambda t: argmin_jax.argmin(objective, 0.0, t))(3.0)
print("argmin", round(float(y), 3), round(float(slope), 3), y.dtype)
""").splitlines()


def test_argmin_runs_without_the_optional_packages(core_alone):
    assert core_alone[0] == "blocked"
    assert core_alone[2] == "argmin 6.0 2.0 float32"


def test_importing_leaves_the_precision_of_jax_alone(core_alone):
    assert core_alone[1] == "x64 False"


def test_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert argmin_jax.__version__ == project["version"] == cited


def test_public_names_are_there_and_documented():
    names = [name for name in vars(argmin_jax) if name[0].isupper() or name in ("argmin", "solve")]
    assert {"LBFGS", "SVD", "ArgminError", "Auto", "Report", "Solution", "Status"} <= set(names)
    assert not [name for name in names if not getattr(argmin_jax, name).__doc__]


def tracked_files():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name]


MACHINE_PATH = re.compile(r"(^|[^\w.])/" + "(work|farm|root|home|tmp)" + "/[A-Za-z]", re.MULTILINE)


def test_the_search_for_machine_paths_finds_them():
    for directory in ("work", "farm", "root", "home", "tmp"):
        assert MACHINE_PATH.search(f"open('/{directory}" + "/x')")
    assert not MACHINE_PATH.search("https://example.org/home" + "/index a.work/x ./tmp" + "/x")


def test_no_tracked_file_names_a_path_of_some_machine():
    files = [path for path in tracked_files() if path.is_file()]
    assert PACKAGE / "__init__.py" in files
    found = {}
    for path in files:
        lines = path.read_bytes().decode(errors="replace").splitlines()
        numbered = enumerate(lines, 1)
        found |= {f"{path.name}:{n}": line for n, line in numbered if MACHINE_PATH.search(line)}
    assert found == {}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    """The rooms of the package that a file imports, its own left out."""
    depth = len(path.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {name.split(".")[0] for name in names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] != "argmin_jax", f"{path.name}: import relatively"
        elif isinstance(node, ast.ImportFrom):
            assert node.level < depth, f"{path.name} imports from outside of the package"
        elif isinstance(node, ast.Import):
            assert not [a for a in node.names if a.name.split(".")[0] == "argmin_jax"]
    return found - {room_of(path)}


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_room_is_on_the_plan_and_described_to_contributors():
    rooms = {room_of(path) for path in SOURCES}
    described = re.findall(
        r"^\| `(\w+)(?:\.py|/)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M
    )
    assert rooms == set(ROOMS)
    assert rooms == set(described)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_room_imports_only_what_lies_before_it(path):
    assert rooms_imported(path) <= ROOMS[room_of(path)]


def test_plan_of_the_rooms_has_no_cycle():
    order = list(ROOMS)
    assert all(order.index(used) < order.index(room) for room in ROOMS for used in ROOMS[room])


def identifiers(path: Path) -> set[str]:
    tree = ast.walk(ast.parse(path.read_text()))
    return {getattr(node, "attr", None) or getattr(node, "id", None) for node in tree}


def test_custom_derivative_rules_live_in_one_room():
    rules = {"custom_vjp", "custom_jvp", "filter_custom_vjp", "filter_custom_jvp", "defvjp"}
    assert {room_of(path) for path in SOURCES if identifiers(path) & rules} == {"rules"}


def test_solvers_know_nothing_of_differentiating_a_solution():
    # (`linearize` and `vjp` they may: derivatives of what they minimise.)
    forbidden = {"root_vjp", "root_jvp", "custom_vjp", "custom_jvp", "linear_solve"}
    for path in (PACKAGE / "solvers").glob("*.py"):
        assert not identifiers(path) & forbidden
        # But for an option of JAXopt of that name.
        assert "implicit" not in path.read_text().replace("implicit_diff", "")
