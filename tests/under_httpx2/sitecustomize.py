"""On PYTHONPATH: in every Python process `import httpx` means httpx2, as a user has it.

`.ci/run` shows the command. httpx2 before `alias_httpx()` came is put in place by hand.
"""

import importlib
import sys

import httpx2

if hasattr(httpx2, "alias_httpx"):
    httpx2.alias_httpx()
else:
    for alias in ("httpx", "httpcore"):
        importlib.import_module(f"{alias}2")
        for name in [name for name in sys.modules if f"{name}.".startswith(f"{alias}2.")]:
            sys.modules[alias + name.removeprefix(f"{alias}2")] = sys.modules[name]
