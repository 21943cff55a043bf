"""The rules of the house, held by reading the source: short functions, no I/O where none belongs,
nothing private of httpx or httpcore outside the files for it.
"""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

import httpx_production
from httpx_production import _response_body, client, retry
from httpx_production._response_body import ensure_complete

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "httpx_production").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
LONGEST = 25  # lines of a function's body, docstring excluded
PRIVATE = ROOT / "src" / "httpx_production" / "transport"  # where httpcore's names are used

Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def functions(module: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(module) if isinstance(node, Function))


def body_lines(function: Function) -> int:
    statements = function.body[1:] if ast.get_docstring(function) else function.body
    return statements[-1].end_lineno - statements[0].lineno + 1 if statements else 0  # type: ignore[operator]


def imported(module: ast.Module) -> set[str]:
    """The top-level names of all that a file imports, at whatever place."""
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0] if not node.level else ".")
    return names


in_sources = pytest.mark.parametrize(
    "path", SOURCES, ids=[str(path.relative_to(PRIVATE.parent)) for path in SOURCES]
)
WALLED = [path for path in SOURCES if PRIVATE not in path.parents]
in_walled = pytest.mark.parametrize("path", WALLED, ids=[path.name for path in WALLED])
in_tests = pytest.mark.parametrize(
    "path", TESTS, ids=[str(path.relative_to(ROOT / "tests")) for path in TESTS]
)


# --- size and words -------------------------------------------------------------------------------


@in_sources
def test_no_function_is_longer_than_25_lines(path: Path) -> None:
    """What doesn't fit has a second idea in it."""
    too_long = {
        function.name: body_lines(function)
        for function in functions(tree(path))
        if body_lines(function) > LONGEST
    }
    assert too_long == {}


def test_the_median_function_is_short() -> None:
    """Four lines or so; six at most."""
    sizes = sorted(body_lines(one) for path in SOURCES for one in functions(tree(path)))
    assert sizes[len(sizes) // 2] <= 6


@in_sources
def test_every_file_begins_with_a_docstring(path: Path) -> None:
    """It says what lives here, and what doesn't, so that a reader knows where to look."""
    text = ast.get_docstring(tree(path))
    assert text
    assert text[0].isupper() or text.startswith(("httpx", "httpcore", "attempt_timeout"))
    assert len(re.findall(r"[.?!](?=\s|$)", text)) <= 6


@pytest.mark.parametrize("name", sorted({*httpx_production.__all__} - {"__version__"}))
def test_every_public_name_explains_itself(name: str) -> None:
    """Docstrings for classes, their methods and functions; a comment for what is none of these."""
    public = getattr(httpx_production, name)
    if isinstance(public, dict | types.UnionType):
        assert re.search(rf"(?m)^#: .*\n(#: .*\n)*{name}\b", inspect.getsource(retry))
        return
    assert inspect.getdoc(public)
    for member, value in vars(public).items() if isinstance(public, type) else ():
        if not member.startswith("_") and isinstance(value, types.FunctionType | property):
            assert inspect.getdoc(value), f"{name}.{member}"


def test_all_is_sorted_and_complete() -> None:
    """Each name is there, and the package's namespace holds no other."""
    names = httpx_production.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), name))
    shown = {
        name
        for name, value in vars(httpx_production).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert shown | {"__version__"} == set(names)
    assert set(names) == {
        "ProductionHTTPClient", "AsyncProductionHTTPClient", "RetryPolicy", "FailedAttempt",
        "PooledTransport", "AsyncPooledTransport", "PoolStats", "RetryBudget", "Outcome",
        "RETRIABLE_STATUS_CODES", "HTTPX_EXCEPTIONS", "jittered_backoff",
        "parse_retry_after", "__version__",
    }  # fmt: skip


def test_the_package_holds_exports_and_nothing_else() -> None:
    """No function, no class, no condition in `__init__.py`."""
    statements = tree(ROOT / "src" / "httpx_production" / "__init__.py").body
    kinds = {type(statement) for statement in statements[1:]}
    assert kinds == {ast.ImportFrom, ast.Assign}


def test_the_version_is_the_distribution_s() -> None:
    """Written twice, since to ask the installed metadata would cost an import."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert httpx_production.__version__ == project["version"]


@in_tests
def test_every_test_says_what_it_holds(path: Path) -> None:
    """One sentence, below a name that says the behaviour; what more there is stands apart."""
    silent = []
    for function in functions(tree(path)):
        first = (ast.get_docstring(function) or "").partition("\n\n")[0]
        if function.name.startswith("test_") and not first.endswith((".", "?", "!")):
            silent.append(function.name)
    assert silent == []
    assert ast.get_docstring(tree(path))


@in_sources
def test_every_module_is_the_subject_of_tests(path: Path) -> None:
    """Who changes a file finds its tests by its name: `grep "Subject.*_deadline.py" -r tests`."""
    name = path.relative_to(PRIVATE.parent).as_posix()
    heads = [ast.get_docstring(tree(test)) or "" for test in TESTS]
    subjects = " ".join(head.partition("Subject: ")[2] for head in heads)
    assert path.stem == "__init__" or f"`{name}`" in subjects


# --- what may be where ----------------------------------------------------------------------------


def test_the_decision_is_free_of_io() -> None:
    """`retry.py` neither waits nor sends, has no thread and no clock but the date's."""
    module = tree(ROOT / "src" / "httpx_production" / "retry.py")
    forbidden = {
        "time", "anyio", "asyncio", "trio", "threading", "socket", "select", "os", "pathlib",
        "subprocess", "httpcore", "contextvars", "concurrent",
    }  # fmt: skip
    assert imported(module) & forbidden == set()
    called = {
        node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
    }
    assert called & {"open", "sleep", "print", "input", "connect", "send", "read", "aread"} == set()
    assert not [node for node in ast.walk(module) if isinstance(node, ast.Await)]
    assert not [one for one in functions(module) if isinstance(one, ast.AsyncFunctionDef)]


def test_only_the_clients_sleep() -> None:
    """One file above the pool waits, so that a test can stop the time in one place."""
    sleeping = {
        path.name
        for path in WALLED
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("sleep")
    }
    assert sleeping == {"client.py"}


def own_names() -> set[str]:
    """Private names that are defined somewhere in the package itself."""
    names: set[str] = set()
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, Function | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def named_in_strings(node: ast.AST) -> set[str]:
    """Private names that a call such as getattr() is given as a text."""
    if not isinstance(node, ast.Call) or "attr" not in ast.unparse(node.func):
        return set()
    values = {str(one.value) for one in node.args if isinstance(one, ast.Constant)}
    return set(filter(private, values))


@in_walled
def test_private_names_of_httpx_stay_behind_the_wall(path: Path) -> None:
    """Outside the pool's files: neither as an attribute, nor by name in a string, nor imported."""
    own, found = own_names(), set[str]()
    for node in ast.walk(tree(path)):
        found |= named_in_strings(node) - own
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own:
            found.add(node.attr)
        if isinstance(node, ast.ImportFrom) and not node.level:
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found |= set(filter(private, parts))
        if isinstance(node, ast.Import):
            found |= {part for one in node.names for part in one.name.split(".") if private(part)}
    assert found == set()


# Where httpx builds its transports: the two private methods of its clients that ours override.
OVERRIDDEN = {"_init_transport", "_init_proxy_transport"}
CLASSES = (client.ProductionHTTPClient, client.AsyncProductionHTTPClient)


def private_names(instance: object) -> set[str]:
    return set(filter(private, dir(instance)))


@in_walled
def test_own_private_names_are_used_on_own_objects(path: Path) -> None:
    """A name of ours that httpx has, too, would slip through the test above."""
    request, response = httpx.Request("GET", "http://x", content=b""), httpx.Response(200)
    theirs = private_names(request) | private_names(response)
    theirs |= private_names(httpx.Client()) | private_names(httpx.AsyncClient())
    found = {
        ast.unparse(node)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in theirs
        if ast.unparse(node.value) not in ("self", "cls")
    }
    assert found == set()


def test_our_clients_private_names_are_none_of_httpx_s() -> None:
    """Else httpx would call ours in place of its own, or overwrite it; two are meant to be."""
    ours = {name for kind in CLASSES for part in kind.__mro__[:2] for name in vars(part)}
    theirs = private_names(httpx.Client()) | private_names(httpx.AsyncClient())
    assert set(filter(private, ours)) & theirs == OVERRIDDEN


@pytest.mark.parametrize("kind", CLASSES)
def test_httpx_still_builds_its_transports_where_ours_are_built(kind: Any) -> None:
    """Fails loudly when httpx renames a method: then its own transports would be used again."""
    built = kind(proxy="http://127.0.0.1:9")
    assert {type(one) for one in (built._transport, *built._mounts.values())} == {
        kind._transport_class
    }
    parent = httpx.Client if issubclass(kind, httpx.Client) else httpx.AsyncClient
    names = {"verify", "cert", "trust_env", "http1", "http2", "limits"}
    for name, own in (("_init_transport", "transport"), ("_init_proxy_transport", "proxy")):
        assert {*names, own} == {*inspect.signature(getattr(parent, name)).parameters} - {"self"}


def test_one_private_name_is_written_in_one_place() -> None:
    """`_decoder`, because no public name leads to the decompressor."""
    written = [
        (path.name, node.value)
        for path in WALLED
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and node.value == "_decoder"
    ]
    assert written == [("_response_body.py", "_decoder")]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_the_one_private_name_still_works(encoding: str) -> None:
    """Fails loudly when httpx renames it: then half a text would pass for the whole again."""
    whole = compressed(encoding)
    for content, complete in ((whole, True), (whole[:-4], False)):
        response = httpx.Response(
            200, headers={"Content-Encoding": encoding}, stream=httpx.ByteStream(content),
            request=httpx.Request("GET", "http://x"),
        )  # fmt: skip
        response.read()
        if complete:
            ensure_complete(response)
        else:
            with pytest.raises(httpx.RemoteProtocolError, match="ended before its end"):
                ensure_complete(response)


def compressed(encoding: str) -> bytes:
    module: Any = importlib.import_module({"gzip": "gzip", "br": "brotli"}.get(encoding, "zlib"))
    compressed: bytes = module.compress(bytes(range(256)) * 20)
    return compressed


# --- the two loops --------------------------------------------------------------------------------


class Synchronous(ast.NodeTransformer):
    """Takes out of a method what makes it async."""

    names: ClassVar = {
        "aread": "read", "aclose": "close", "async_sleep": "sleep", "adiscard": "discard",
        "atake_small": "take_small", "aiter": "iter", "_AsyncTaken": "_SyncTaken",
        "_abroken": "_broken",
    }  # fmt: skip

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self.visit(ast.FunctionDef(**dict(ast.iter_fields(node))))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = self.names.get(node.name, node.name)
        if ast.get_docstring(node):  # "Do the same for the async client."
            del node.body[0]
        return self.generic_visit(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        return self.generic_visit(ast.For(**dict(ast.iter_fields(node))))

    def visit_Await(self, node: ast.Await) -> ast.AST:
        return self.visit(node.value)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = self.names.get(node.attr, node.attr)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        if ast.unparse(node.test).startswith("isawaitable("):  # awaited, or refused
            call = ast.parse(ast.unparse(node.test)).body[0].value.args[0].value  # type: ignore[attr-defined]
            return ast.Expr(call)
        return self.generic_visit(node)


def sync_text(name: str, owner: object) -> str:
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    return ast.unparse(ast.fix_missing_locations(Synchronous().visit(ast.parse(source))))


@pytest.mark.parametrize(
    "name", ["send", "_repeat", "_attempt", "_judge", "_finish", "_recover", "_pause"]
)
def test_the_two_loops_differ_in_await_alone(name: str) -> None:
    """Written twice, held together here: nobody mends one and forgets the other."""
    assert sync_text(name, CLASSES[0]) == sync_text(name, CLASSES[1])


@pytest.mark.parametrize("name", ["take_small", "discard"])
def test_what_is_done_with_bodies_differs_in_await_alone(name: str) -> None:
    """The same for functions of which the async one begins with an "a"."""
    assert sync_text(name, _response_body) == sync_text(f"a{name}", _response_body)


def test_the_clients_hold_nothing_but_the_loop() -> None:
    """Whatever else they have is written once, in `_constructor.py`."""
    own = [{name for name, value in vars(kind).items() if callable(value)} for kind in CLASSES]
    assert own[0] == {
        "send", "_repeat", "_attempt", "_judge", "_finish", "_recover", "_pause", "_in_time",
        "_time_for_hooks", "_transport_class",
    }  # fmt: skip
    assert own[1] == {*own[0], "close"}


# --- the repository -------------------------------------------------------------------------------


def test_the_top_level_holds_what_the_contract_allows() -> None:
    """No lock file, no scripts, no changelog of its own; dot files are free."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=15)
    if done.returncode:
        pytest.skip("not in a git repository")
    top = {path.partition("/")[0] for path in done.stdout.splitlines()}
    allowed = {"pyproject.toml", "README.md", "LICENSE", "src", "tests", "examples"}
    assert {name for name in top if not name.startswith(".")} <= allowed
    assert (ROOT / ".python-version").read_text(encoding="utf-8").split() == ["3.12", "3.13"]


# --- what an import brings ------------------------------------------------------------------------


def modules_after(statements: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys\n{statements}\nprint(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=True)
    return set(done.stdout.split())


def test_the_import_brings_nothing_that_httpx_does_not() -> None:
    """pendulum and httpcore wait for the first date and client, the event loops for a wait."""
    extra = modules_after("import httpx_production") - modules_after("import httpx")
    heavy = {"pendulum", "httpcore", "trio", "anyio._backends", "h2", "h11", "asyncio", "pydantic"}
    assert {name for name in extra if name in heavy or name.startswith("anyio._backends")} == set()
    assert {name.partition(".")[0] for name in extra} <= {
        "httpx_production", "random", "bisect", "hashlib", "math", "statistics", "dataclasses",
        "copy", "inspect", "dis", "opcode", "ast", "tokenize", "token", "linecache", "keyword",
        "_random", "_bisect", "_hashlib", "_blake2", "_sha2", "_opcode", "_ast", "itertools",
    }  # fmt: skip


def test_private_modules_are_private() -> None:
    """Public are the package, `client`, `retry` and `testing`; an underscore marks the rest."""
    public = {path.stem for path in WALLED if not path.stem.startswith("_")}
    assert public == {"client", "retry", "testing"}
    assert (ROOT / "src" / "httpx_production" / "py.typed").exists()
