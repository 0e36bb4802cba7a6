"""Ways to plant a bug, and small subjects for `gptloom verify`."""

import inspect
import sys
import textwrap

import torch
from torch import nn

import gptloom.bundle
import gptloom.training.run
from gptloom.studies.verify.open import open_recipe

SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 16, "block_size": 16}

RECIPES = {
    "tiny": {"model": SMALL},
    "mingpt": {"model": SMALL | {"head": "tied", "dropout": 0.1}, "train": {"batch_size": 4, "ranks": 2}},
    "modern-tiny": {"model": SMALL | {"n_kv_head": 2}},
    "encoder": {"model": SMALL},
    "translate": {"model": SMALL | {"n_layer": 1}},
    "lstm": {"model": {"n_layer": 2, "n_embd": 16, "block_size": 16, "dropout": 0.1}},
}


def subject(recipe, seed=1):
    return open_recipe(recipe, {"device": "cpu"} | RECIPES[recipe], seed=seed)


def edit(owner, name, *changes):
    """A planter: replaces pieces of a function's source, in all modules that import the function."""

    def plant(patch):
        function = getattr(owner, name)
        source = textwrap.dedent(inspect.getsource(function))
        for old, new in changes:
            assert old in source, f"{name} no longer contains {old!r}: plant this bug again"
            source = source.replace(old, new)
        module = sys.modules[function.__module__]
        made = dict(vars(module))
        exec(compile(source, f"<planted in {name}>", "exec"), made)  # noqa: S102  # gptloom's own source, edited above
        importers = [
            place
            for key, place in list(sys.modules.items())
            if key.startswith("gptloom") and vars(place).get(name) is function
        ]
        for place in {owner, *importers}:
            patch.setattr(place, name, made[name])

    return plant


def replace(owner, name, wrap):
    """A planter: replaces a function by `wrap(function)`."""
    return lambda patch: patch.setattr(owner, name, wrap(getattr(owner, name)))


def after_loading(change):
    """A planter: changes a model when it is loaded."""

    def wrap(load):
        def loading(folder):
            model = load(folder)
            with torch.no_grad():
                change(model)
            return model

        return loading

    return replace(gptloom.bundle, "load_model", wrap)


def at_resume(change):
    """A planter: changes the state of a run when it is resumed."""

    def wrap(read):
        def reading(path):
            state = read(path)
            change(state.progress)
            return state

        return reading

    return replace(gptloom.training.run, "read_checkpoint", wrap)


def untie(model):
    model.head.weight = nn.Parameter(model.head.weight.clone())


def transpose(model):
    for p in model.parameters():
        if p.ndim == 2 and p.shape[0] == p.shape[1]:
            p.copy_(p.T.clone())
