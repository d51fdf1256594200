"""No function is longer than a screen, and none that is not public takes more than seven values."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from paths import REPOSITORY

LINES, PARAMETERS = 80, 7
# Names that users call: their parameters are their options.
PUBLIC = {
    "mmga/compat.py": {"evaluate_rank", "fastreid_evaluate_rank"},
    "mmga/retrieval/evaluate.py": {"evaluate", "evaluate_distances"},
    "mmga/retrieval/neighbours/graphs.py": {"kneighbors_graph"},
    "mmga/retrieval/neighbours/knn.py": {"nearest"},
    "mmga/retrieval/neighbours/query_expansion.py": {"expand_queries"},
    "mmga/retrieval/reranking/jaccard.py": {"jaccard_distance"},
    "mmga/retrieval/reranking/rerank.py": {"rerank"},
    "mmga/retrieval/features/features.py": {"Features.__init__"},
    "mmga/plots/lists.py": {"ranked_lists"},
    "mmga/models/network.py": {"MMGA.__init__"},
    "mmga/data/synthetic/dataset.py": {"synthetic"},
}
# Operators take what their schema says: the reference, the implementations and the kernels.
OPERATORS = ("mmga/ops/reference/", "mmga/ops/triton/", "mmga/ops/attention.py")


def python_functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield the name, the lines and the number of parameters of every function of a file."""

    def walk(node: ast.AST, owner: str) -> Iterator[tuple[str, int, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                given = child.args
                names = [*given.posonlyargs, *given.args, *given.kwonlyargs]
                names += [one for one in (given.vararg, given.kwarg) if one is not None]
                count = len([one for one in names if one.arg not in ("self", "cls")])
                yield f"{owner}{child.name}", child.end_lineno - child.lineno + 1, count
            inside = f"{child.name}." if isinstance(child, ast.ClassDef) else owner
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text()), "")


_COMPILED = re.compile(
    r"^((?:  )?)(?!(?:template <[^\n]*>\n *)?"  # begins in column 0, or 2 where it is a member
    r"(?:namespace|struct|class|enum|union|extern|using|typedef|if|for|while|switch|do|else)\b)"
    r"([A-Za-z_~\[][^;{}]*)\{\n(?:.*\n)*?\1\}",  # and ends with a brace in the same column
    re.MULTILINE,
)


def compiled_functions(text: str) -> list[tuple[str, int]]:
    """Return the signature and the lines of every function of a formatted C++ or CUDA file."""
    return [(found[2], found[0].count("\n") + 1) for found in _COMPILED.finditer(text)]


def test_functions_fit_a_screen() -> None:
    files = [REPOSITORY / "setup.py"]
    for folder in ("mmga", "benchmarks", "tests"):
        files += sorted((REPOSITORY / folder).rglob("*.py"))
    long = [
        f"{path.relative_to(REPOSITORY)} {function}: {count}"
        for path in files
        for function, count, _ in python_functions(path)
        if count > LINES
    ]
    assert long == []


def test_compiled_functions_fit_a_screen() -> None:
    suffixes, long, count = {".cpp", ".cu", ".h", ".cuh"}, [], 0
    for path in (REPOSITORY / "csrc").rglob("*"):
        if path.suffix in suffixes:
            functions = compiled_functions(path.read_text())
            count += len(functions)
            long += [(path.name, one, n) for one, n in functions if n > LINES]
    assert long == [] and count > 200


def test_functions_take_few_values() -> None:
    many = []
    for path in sorted((REPOSITORY / "mmga").rglob("*.py")):
        name = str(path.relative_to(REPOSITORY))
        for function, _, count in python_functions(path):
            exempt = name.startswith(OPERATORS) or function in PUBLIC.get(name, set())
            if count > PARAMETERS and not exempt:
                many.append(f"{name} {function}: {count}")
    assert many == []


def test_sizes_are_counted() -> None:
    body = "int add(int a,\n        int b) {\n" + "  a += b;\n" * 90 + "  return a;\n}\n"
    text = f"namespace x {{\n\n{body}\n}}  // namespace x\n"
    assert [n for _, n in compiled_functions(text)] == [94]
    assert compiled_functions("int add(int a, int b);\n\nstruct A {\n  int a;\n};\n") == []
    member = "template <typename T>\nclass A {\n  int b() {\n    return 1;\n  }\n};\n"
    assert compiled_functions(member) == [("int b() ", 3)]
