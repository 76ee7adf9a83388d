"""Steps of compiled models beside those of the same models as they are: run in a process of its own, since the
checks of shapes that tests put around every function cannot be traced.

python -m helpers.compiling <mode> <backend> [model | model:objective ...]: names those that differ, or fail.
"""

import sys
import warnings
from dataclasses import replace

import torch

from helpers.small import MODELS, batch_of, from_loader, held_out, model_of, recipe_of
from vrnn_lab.cli.arguments import configure_logging
from vrnn_lab.models.recipe import ELBO, FIVO, IWAE
from vrnn_lab.training.compile_step import Compiled


class Asks(ELBO):
    """Looks at a number, where Python decides what comes next: none of that can be one piece."""

    def __call__(self, model, series):
        return super().__call__(model, series if series.values.sum().item() < 1e9 else series.given())


OBJECTIVES = {"asks": Asks(), "elbo": ELBO(2), "iwae": IWAE(3), "fivo": FIVO(3)}
# The last batch of an epoch is smaller, and may be shorter.
BATCHES = [from_loader(held_out(batch_of(rows, time, seed=time))) for rows, time in ((5, 8), (3, 6))]


def step(model, terms, number: int):
    """Loss and gradients of a training step, its noise from the generator as in a fit."""
    model.zero_grad()
    model.noise.seed(3, number, device=torch.device("cpu"))
    found = terms(BATCHES[number])
    loss = (found.nll + found.kl).sum()
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


def compare(name: str, mode: str, backend: str, batches: int) -> None:
    name, _, objective = name.partition(":")
    recipe = replace(recipe_of(), objective=OBJECTIVES[objective or "elbo"])
    model = model_of(name, double=True, recipe=recipe)
    before = list(model.state_dict())
    compiled = Compiled(model, mode, backend)
    for number in range(batches):
        found, known = (step(model, terms, number) for terms in (compiled, model.loss_terms))
        torch.testing.assert_close(found, known, rtol=1e-7, atol=1e-9)
    assert list(model.state_dict()) == before
    again = step(model, model.loss_terms, 0), step(model, model.loss_terms, 0)
    torch.testing.assert_close(*again, rtol=0, atol=0)


def main() -> int:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*torch.jit.*", DeprecationWarning)  # inductor's own use of it
    configure_logging()
    mode, backend, *names = sys.argv[1:]
    wrong = 0
    for name in names or MODELS:
        torch.compiler.reset()
        try:
            compare(name, mode, backend, len(BATCHES) if names else 1)
        except Exception as error:
            wrong += 1
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
