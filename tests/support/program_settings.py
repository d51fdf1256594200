"""Settings of a whole program, and public functions that run under one while tests do not."""

import contextlib
import functools
import importlib
import inspect

import torch

import mmga
import mmga.compat


@contextlib.contextmanager
def default_dtype(dtype):
    former = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(former)


@contextlib.contextmanager
def flush_denormal():
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "device": lambda: torch.device("meta"),  # stands for cuda, and fails wherever it is taken
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "flush": flush_denormal,
}


def under(setting, function):
    """Return a function that runs under a setting."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        with SETTINGS[setting]():
            return function(*args, **kwargs)

    return run


def public_callables():
    """Yield (owner, name, callable) of all public functions, and of methods that compute."""
    for name, place in mmga._PUBLIC.items():
        value = getattr(mmga, name)
        if not inspect.isclass(value):
            yield importlib.import_module(place), name, value
        elif name in ("Features", "Evaluator", "GalleryIndex"):
            for method, code in vars(value).items():
                plain = inspect.isfunction(code) or isinstance(code, classmethod)
                if plain and (method == "__init__" or not method.startswith("_")):
                    yield value, method, code
    for name, value in vars(mmga.compat).items():
        if inspect.isfunction(value) and value.__module__ == "mmga.compat" and name[0] != "_":
            yield mmga.compat, name, value


def apply(setting, monkeypatch, module):
    """Let all that is public run under a setting, wherever a test module finds it."""
    replaced = {}
    for owner, name, code in public_callables():
        if isinstance(code, classmethod):
            changed = classmethod(under(setting, code.__func__))
        else:
            changed = replaced[code] = under(setting, code)
        monkeypatch.setattr(owner, name, changed)
    for name, value in list(vars(module).items()):
        if inspect.isfunction(value) and value in replaced:
            monkeypatch.setattr(module, name, replaced[value])
