"""Mutation testing: change one thing in a module, and see whether a test notices.

    uv run --group mutation tests/benchmarks/mutate.py [--part 1/4] [retry _call ...]

cosmic-ray's operators and two of our own; each mutant lives in a forked process alone, nothing is
written to disk. Prints those that no test noticed: each needs a test, or a reason.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import itertools
import multiprocessing
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import h2.connection
import httpcore
import hypothesis
import parso
import pendulum
import pytest
import trio
import trustme
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names

IMPORTED = h2, httpcore, pendulum, trio, trustme  # once, not by each mutant's process

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "src" / "httpx_production"

#: The tests that should notice, the fastest first (the first failure ends a mutant), and of which.
NOTICED_BY = {
    "retry": ("policy decision retry_after permanent unsent budget", "not trio"),
    "_call": ("decision policy unsent hooks budget bodies caller_stays", "not trio"),
    "_request_body": ("request_body bodies options caller_stays", "not trio"),
    "_response_body": ("response_body truncated_content resources caller_stays", "not trio"),
    "_deadline": ("deadline caller_stays", "not trio"),
    "_attempts": ("caller_stays retries deadline", "not trio"),
    "_arguments": ("policy options caller_stays", "not trio"),
    "_checks": ("policy options hooks decision caller_stays", "not trio"),
    "_budget": ("budget", "not trio"),
    "_cookies": ("options cost", "not trio"),
    "_tls": ("tls", "not trio"),
    "testing": ("testing", "not trio"),
    "_constructor": (
        "options hooks tls policy drop_in bodies caller_stays deadline transport/pool",
        "not trio",
    ),
    "client": (
        "hooks truncated_content retries drop_in bodies options cost caller_stays deadline",
        "not trio",
    ),
    "transport._assignment": ("transport/assignment", "not ctrl-c"),
    "transport._locked": ("transport/locked", "not trio"),
    "transport._http2_protocol": ("transport/http2_protocol", ""),
    "transport._http2_stream": ("transport/http2_protocol", ""),
    "transport._http2_waiting": ("transport/http2 transport/connecting", "not trio"),
    "transport._http2_connections": ("transport/instrumentation transport/http2", "not trio"),
    "transport._pooled": ("transport/pool transport/standalone options", "not trio"),
    "transport._pools": (
        "transport/instrumentation transport/pool transport/pool_cancellation transport/closing",
        "not trio and not thousand",
    ),
    "transport._connections": (
        "transport/instrumentation transport/pool transport/network transport/connecting",
        "not trio",
    ),
    "transport._pool": ("transport/pool transport/waiting transport/not_processed", "not trio"),
    "transport._runtime": (
        "transport/network transport/connecting transport/forks_and_loops",
        "not trio",
    ),
    "transport._sockets": ("transport/network transport/connecting transport/closing", "not trio"),
    "transport._network": ("transport/network transport/connecting", "not trio"),
    "transport._http2": ("transport/http2 transport/http2_gives_way", "not trio"),
}

OPERATORS = (
    "AddNot Delete_Not ReplaceAndWithOr ReplaceOrWithAnd ReplaceTrueWithFalse ReplaceFalseWithTrue "
    "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is "
    "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Pow_Mul BitOr_BitAnd Delete_USub NumberReplacer "
    "ExceptionReplacer RemoveDecorator ReplaceBreakWithContinue ReplaceContinueWithBreak "
    "ZeroIterationForLoop"
)


class LeaveOut(Operator):
    """A statement that does something does nothing."""

    KINDS = ("expr_stmt", "atom_expr", "raise_stmt", "del_stmt", "await_expr", "yield_expr")

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type != "simple_stmt" or node.parent.type == "file_input":
            return
        statement = node.children[0]
        declares = statement.type == "expr_stmt" and "=" not in statement.get_code()
        if statement.type in self.KINDS and not declares:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return parso.parse(f"{node.get_first_leaf().prefix}pass\n")

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        return ()


class AnswerNothing(LeaveOut):
    """A function returns None."""

    KINDS = ("return_stmt",)

    def mutate(self, node: Any, index: int) -> Any:
        return parso.parse(f"{node.get_first_leaf().prefix}return None\n")


def operators() -> Iterator[Operator]:
    known = list(operator_names())
    for end in OPERATORS.split():
        yield get_operator(next(name for name in known if name.endswith(("/" + end, "_" + end))))()
    yield from (LeaveOut(), AnswerNothing())


def meaning(source: str) -> str:
    """What Python runs of a source: a changed annotation or comment is no mutant."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    return ast.dump(tree)


def mutants(source: str) -> Iterator[str]:
    seen = {meaning(source)}
    for operator in operators():
        for mutant in mutants_by(operator, source):
            try:
                means = meaning(mutant)
            except SyntaxError:
                continue
            if means not in seen:
                seen.add(means)
                yield mutant


def mutants_by(operator: Operator, source: str) -> Iterator[str]:
    for occurrence in itertools.count():
        try:
            mutant = mutate_code(source, operator, occurrence)
        except AttributeError:  # ExceptionReplacer takes no dotted name in a tuple
            continue
        if mutant is None:
            return
        yield mutant


def difference(source: str, mutant: str) -> str:
    """The line's number, and its text before and after."""
    old, new = source.splitlines(), mutant.splitlines()
    lines = list(difflib.unified_diff(old, new, n=0, lineterm=""))
    number = lines[2].split()[1].lstrip("-").partition(",")[0]
    texts = [f"{line[0]} {line[1:].strip()}" for line in lines[3:]]
    return f"{number}: " + "  ".join(texts)


def file_of(module: str) -> Path:
    return PACKAGE / f"{module.replace('.', '/')}.py"


def trial(module: str, source: str, quiet: bool) -> None:
    """Run the tests against a module's other source; the process ends with pytest's status."""
    original, name = SourceFileLoader.get_code, f"httpx_production.{module}"

    def get_code(self: SourceFileLoader, fullname: str) -> Any:
        path = str(file_of(module))
        return compile(source, path, "exec") if fullname == name else original(self, fullname)

    SourceFileLoader.get_code = get_code
    resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31))
    for stream in (1, 2) if quiet else ():
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    names, keywords = NOTICED_BY[module]
    options = "-x -q --tb=short -p no:cacheprovider --hypothesis-profile=mutants"
    options += " -W ignore::pytest.PytestAssertRewriteWarning"  # hypothesis was imported before
    paths = [TESTS / name for name in names.split()]
    tests = [str(path.with_name(f"test_{path.name}.py")) for path in paths]
    options += " --numprocesses=0"  # the mutant is in this process alone
    status = pytest.main([*options.split(), "--rootdir", str(TESTS.parent), "-k", keywords, *tests])
    sys.stdout.flush()
    os._exit(status)


def outcome(module: str, source: str, limit: float, *, quiet: bool = True) -> str:
    """Say what became of a mutant: killed, survived, timed out."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=trial, args=(module, source, quiet))
    process.start()
    process.join(limit)
    if process.exitcode is None:
        process.kill()
        process.join()
        return "timed out"
    return "killed" if process.exitcode else "survived"


def examine(module: str, part: int, parts: int) -> None:
    """Try a module's mutants and print those that were not killed."""
    source = file_of(module).read_text()
    started = time.monotonic()
    if outcome(module, source, 300, quiet=False) != "survived":
        sys.exit(f"{module}: its tests fail without any change")
    limit = 2 * (time.monotonic() - started) + 10
    counts: Counter[str] = Counter()
    for mutant in itertools.islice(mutants(source), part - 1, None, parts):
        result = outcome(module, mutant, limit)
        counts[result] += 1
        if result != "killed":
            print(f"{module}:{difference(source, mutant)}  [{result}]", flush=True)
    print(f"{module}: {dict(counts)} in {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", choices=[[], *NOTICED_BY], default=[])
    parser.add_argument("--part", default="1/1", help="1/4: the first of four parts, evenly spread")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    hypothesis.settings.register_profile("mutants", max_examples=20, database=None, deadline=None)
    for module in options.modules or NOTICED_BY:
        examine(module, part, parts)


if __name__ == "__main__":
    main()
